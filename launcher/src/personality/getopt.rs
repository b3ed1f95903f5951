//! Command lines as GNU getopt_long(3) reads them, for programs that are called by habits of decades. Pure.
//!
//! Options may follow positional words; long names may be cut short while only one fits; `--name=value`,
//! `--name value`, `-n value`, `-nvalue` and `-abc` all work; `--` ends the options. Messages are those of glibc.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use thiserror::Error;

/// One option of a program; aliases share their `code`.
#[derive(Clone, Copy, Debug)]
pub struct Opt<T> {
    /// Long name, without dashes.
    pub long: &'static str,
    /// Short name.
    pub short: Option<u8>,
    /// Whether a value follows.
    pub value: Value,
    /// What the program calls it.
    pub code: T,
}

/// Whether an option has a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// Never.
    None,
    /// Always.
    Required,
}

/// A word of the command line, or two that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item<T> {
    /// An option without a value.
    Flag(T),
    /// An option with its value.
    Valued(T, OsString),
    /// Anything else.
    Positional(OsString),
}

/// A word that cannot be read, in glibc's words (which put the program's name and a colon before them).
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum GetoptError {
    /// No such long option.
    #[error("unrecognized option '--{0}'")]
    Unrecognized(String),
    /// Several long options begin like this.
    #[error("option '--{name}' is ambiguous; possibilities:{}", possibilities(.candidates))]
    Ambiguous {
        /// What was given.
        name: String,
        /// What it may mean.
        candidates: Vec<&'static str>,
    },
    /// A value for an option that has none.
    #[error("option '--{0}' doesn't allow an argument")]
    UnwantedValue(&'static str),
    /// No value for a long option that needs one.
    #[error("option '--{0}' requires an argument")]
    MissingValue(&'static str),
    /// No such short option.
    #[error("invalid option -- '{0}'")]
    Invalid(char),
    /// No value for a short option that needs one.
    #[error("option requires an argument -- '{0}'")]
    MissingShortValue(char),
}

fn possibilities(candidates: &[&str]) -> String {
    candidates.iter().map(|name| format!(" '--{name}'")).collect()
}

/// Reads words one by one, in their order.
#[derive(Debug)]
pub struct Getopt<'a, T> {
    options: &'a [Opt<T>],
    words: std::vec::IntoIter<OsString>,
    /// What is left of a word of short options.
    cluster: Vec<u8>,
    only_positionals: bool,
}

impl<'a, T: Copy + PartialEq> Getopt<'a, T> {
    /// Reads `words`, which do not include the program's name.
    pub fn new(options: &'a [Opt<T>], words: Vec<OsString>) -> Self {
        Getopt { options, words: words.into_iter(), cluster: Vec::new(), only_positionals: false }
    }

    /// Takes the words that have not been read, whatever they are.
    pub fn rest(&mut self) -> impl Iterator<Item = OsString> {
        std::mem::take(&mut self.words)
    }

    fn long(&mut self, text: &[u8]) -> Result<Item<T>, GetoptError> {
        let (name, value) = match text.iter().position(|&byte| byte == b'=') {
            Some(at) => (&text[..at], Some(OsStr::from_bytes(&text[at + 1..]).to_owned())),
            None => (text, None),
        };
        let option = self.option_named(name, text)?;
        match (option.value, value) {
            (Value::None, None) => Ok(Item::Flag(option.code)),
            (Value::None, Some(_)) => Err(GetoptError::UnwantedValue(option.long)),
            (Value::Required, Some(value)) => Ok(Item::Valued(option.code, value)),
            (Value::Required, None) => match self.words.next() {
                Some(value) => Ok(Item::Valued(option.code, value)),
                None => Err(GetoptError::MissingValue(option.long)),
            },
        }
    }

    fn option_named(&self, name: &[u8], text: &[u8]) -> Result<Opt<T>, GetoptError> {
        if let Some(exact) = self.options.iter().find(|option| option.long.as_bytes() == name) {
            return Ok(*exact);
        }
        let fits = |option: &&Opt<T>| option.long.as_bytes().starts_with(name);
        let candidates: Vec<&Opt<T>> = self.options.iter().filter(fits).collect();
        match candidates.split_first() {
            None => Err(GetoptError::Unrecognized(String::from_utf8_lossy(text).into_owned())),
            Some((first, others)) if others.iter().all(|other| other.code == first.code) => Ok(**first),
            Some(_) => Err(GetoptError::Ambiguous {
                name: String::from_utf8_lossy(text).into_owned(),
                candidates: candidates.iter().map(|option| option.long).collect(),
            }),
        }
    }

    fn short(&mut self) -> Result<Item<T>, GetoptError> {
        let letter = self.cluster.remove(0);
        let option = self.options.iter().find(|option| option.short == Some(letter));
        let option = option.ok_or(GetoptError::Invalid(char::from(letter)))?;
        match option.value {
            Value::None => Ok(Item::Flag(option.code)),
            Value::Required if !self.cluster.is_empty() => {
                let value = OsString::from_vec(std::mem::take(&mut self.cluster));
                Ok(Item::Valued(option.code, value))
            }
            Value::Required => match self.words.next() {
                Some(value) => Ok(Item::Valued(option.code, value)),
                None => Err(GetoptError::MissingShortValue(char::from(letter))),
            },
        }
    }
}

impl<T: Copy + PartialEq> Iterator for Getopt<'_, T> {
    type Item = Result<Item<T>, GetoptError>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.cluster.is_empty() {
            return Some(self.short());
        }
        let word = self.words.next()?;
        if self.only_positionals {
            return Some(Ok(Item::Positional(word)));
        }
        match word.as_bytes() {
            b"--" => {
                self.only_positionals = true;
                self.next()
            }
            [b'-', b'-', text @ ..] => {
                let text = text.to_vec();
                Some(self.long(&text))
            }
            [b'-', letters @ ..] if !letters.is_empty() => {
                self.cluster = letters.to_vec();
                Some(self.short())
            }
            _ => Some(Ok(Item::Positional(word))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: &[Opt<char>] = &[
        Opt { long: "configure", short: Some(b'c'), value: Value::None, code: 'c' },
        Opt { long: "enable-ipv6", short: Some(b'6'), value: Value::None, code: '6' },
        Opt { long: "enable-sandbox", short: None, value: Value::None, code: 's' },
        Opt { long: "mtu", short: Some(b'm'), value: Value::Required, code: 'm' },
        Opt { long: "no-host", short: None, value: Value::None, code: 'n' },
        Opt { long: "no-host-loopback", short: None, value: Value::None, code: 'l' },
        Opt { long: "create-sandbox", short: None, value: Value::None, code: 's' },
        Opt { long: "create-sandbox-too", short: None, value: Value::None, code: 's' },
    ];

    fn read(words: &[&str]) -> Result<Vec<Item<char>>, String> {
        let words = words.iter().map(OsString::from).collect();
        Getopt::new(OPTIONS, words).collect::<Result<_, _>>().map_err(|error| error.to_string())
    }

    fn valued(code: char, value: &str) -> Item<char> {
        Item::Valued(code, value.into())
    }

    fn positional(word: &str) -> Item<char> {
        Item::Positional(word.into())
    }

    #[test]
    fn order_is_free_and_two_dashes_end_the_options() {
        let items = read(&["123", "-c", "tap0", "--mtu", "9", "-", "--", "-c", "--"]).unwrap();
        let expected = [
            positional("123"),
            Item::Flag('c'),
            positional("tap0"),
            valued('m', "9"),
            positional("-"),
            positional("-c"),
            positional("--"),
        ];
        assert_eq!(items, expected);
    }

    #[test]
    fn values_are_joined_or_separate() {
        for words in [&["--mtu=9"][..], &["--mtu", "9"], &["-m9"], &["-m", "9"], &["--m=9"]] {
            assert_eq!(read(words).unwrap(), [valued('m', "9")], "{words:?}");
        }
        assert_eq!(read(&["--mtu="]).unwrap(), [valued('m', "")]);
        assert_eq!(read(&["--mtu=a=b"]).unwrap(), [valued('m', "a=b")]);
        assert_eq!(read(&["-c6m9"]).unwrap(), [Item::Flag('c'), Item::Flag('6'), valued('m', "9")]);
        assert_eq!(read(&["-m", "-c"]).unwrap(), [valued('m', "-c")]);
    }

    #[test]
    fn names_may_be_cut_short_while_one_option_fits() {
        assert_eq!(read(&["--conf"]).unwrap(), [Item::Flag('c')]);
        assert_eq!(read(&["--no-host"]).unwrap(), [Item::Flag('n')], "an exact name wins");
        assert_eq!(read(&["--create"]).unwrap(), [Item::Flag('s')], "aliases are one option");
        assert_eq!(
            read(&["--enable"]).unwrap_err(),
            "option '--enable' is ambiguous; possibilities: '--enable-ipv6' '--enable-sandbox'"
        );
    }

    #[test]
    fn faults_read_as_those_of_glibc() {
        assert_eq!(read(&["--foo=1"]).unwrap_err(), "unrecognized option '--foo=1'");
        assert_eq!(read(&["--conf=1"]).unwrap_err(), "option '--configure' doesn't allow an argument");
        assert_eq!(read(&["--mtu"]).unwrap_err(), "option '--mtu' requires an argument");
        assert_eq!(read(&["-c=1"]).unwrap_err(), "invalid option -- '='");
        assert_eq!(read(&["-cm"]).unwrap_err(), "option requires an argument -- 'm'");
    }
}
