//! What is published from the start.

use forwarder::auto::AutoRules;
use forwarder::error::PortError;
use forwarder::manager::{Added, PortManager};
use forwarder::spec::{Origin, PortFile, PortSpec};

use crate::cli::Publish;
use crate::error::UsageError;

/// Forwards that go together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForwardPlan {
    /// In the order given, each once.
    pub ports: Vec<PortSpec>,
    /// What is published by itself besides.
    pub auto: Option<AutoRules>,
}

impl ForwardPlan {
    /// Takes the options of `--publish`, then the contents of each `--publish-file`.
    ///
    /// # Errors
    /// Two of them want the same port of the host, there are too many, or `auto` is given twice.
    pub fn new(options: &[Publish], files: &[PortFile]) -> Result<Self, UsageError> {
        let mut plan = ForwardPlan::default();
        let mut manager = PortManager::default();
        let listed = files.iter().flat_map(|file| file.ports.iter().cloned().map(Publish::Port));
        for publish in options.iter().cloned().chain(listed) {
            match publish {
                Publish::Auto(rules) => {
                    if plan.auto.replace(rules).is_some() {
                        return Err(UsageError::AutoTwice);
                    }
                }
                Publish::Port(spec) => match manager.add(spec.clone(), Origin::Asked) {
                    Ok(Added::New(_)) => plan.ports.push(spec),
                    Ok(Added::Same(_)) => {}
                    Err(PortError::Conflict { id, address, transport }) => {
                        let other = manager.status(id).map(|status| status.spec.to_string());
                        return Err(UsageError::PublishedTwice {
                            spec: spec.to_string(),
                            other: other.unwrap_or_default(),
                            place: format!("{address}/{transport}"),
                        });
                    }
                    Err(source) => return Err(UsageError::Publish { spec: spec.to_string(), source }),
                },
            }
        }
        Ok(plan)
    }

    /// Takes these besides, but for those whose port of the host or of the child is published already.
    #[must_use]
    pub fn with(mut self, ports: &[PortSpec]) -> Self {
        for port in ports {
            let is_about_the_same = |given: &PortSpec| {
                let meets = |first: u16, wanted: u16| {
                    let last = first.saturating_add(given.count() - 1);
                    (first..=last).contains(&wanted)
                };
                given.proto().transport() == port.proto().transport()
                    && (meets(given.fields().parent_port, port.fields().parent_port)
                        || meets(given.fields().child_port, port.fields().child_port))
            };
            if !self.ports.iter().any(is_about_the_same) {
                self.ports.push(port.clone());
            }
        }
        self
    }

    /// Whether nothing is published.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.auto.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(options: &[&str], file: &[&str]) -> Result<ForwardPlan, String> {
        let options: Vec<Publish> = options.iter().map(|text| text.parse().unwrap()).collect();
        let file = PortFile { ports: file.iter().map(|text| text.parse().unwrap()).collect() };
        ForwardPlan::new(&options, &[file]).map_err(|error| error.to_string())
    }

    #[test]
    fn options_and_files_are_one_list() {
        let plan = plan(&["8080:80", "auto,tcp"], &["8080:80/tcp", "53:53/udp"]).unwrap();
        let texts: Vec<_> = plan.ports.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["8080:80/tcp", "53:53/udp"]);
        assert_eq!(plan.auto.unwrap().to_string(), "auto,tcp");
        assert!(ForwardPlan::new(&[], &[]).unwrap().is_empty());
    }

    #[test]
    fn what_is_published_by_itself_gives_way_to_what_is_asked_for() {
        let kubelet: PortSpec = "10250:10250".parse().unwrap();
        let added = |options: &[&str], file: &[&str]| {
            let plan = plan(options, file).unwrap().with(std::slice::from_ref(&kubelet));
            plan.ports.contains(&kubelet)
        };
        assert!(added(&[], &[]) && added(&["10250:10250/udp"], &["80:80"]));
        assert!(!added(&["10350:10250"], &[]) && !added(&[], &["1000-2000:10000-11000"]));
        assert!(!added(&["127.0.0.1:10250:80"], &[]));
    }

    #[test]
    fn conflicts_within_the_list_are_found_before_anything_starts() {
        assert_eq!(
            plan(&["127.0.0.1:8000-8009:80"], &["8005:81"]),
            Err("8005:81/tcp and 127.0.0.1:8000-8009:80/tcp both want the host's 127.0.0.1:8005/tcp"
                .to_owned())
        );
        assert_eq!(plan(&["auto", "auto,udp"], &[]), Err("--publish auto is given twice".to_owned()));
        let many: Vec<String> = (1..=1025).map(|port| format!("{port}:1")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(plan(&many, &[]), Err("cannot publish 1025:1/tcp".to_owned()));
    }
}
