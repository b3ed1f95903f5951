//! Programs that tasks run and wait for.

use std::process::{Command, Stdio};

use super::TaskError;

/// Runs it to its end and returns what it printed.
///
/// # Errors
/// It cannot be started, or fails; then the last line of its complaint is told.
pub(super) fn output(command: &mut Command, what: impl FnOnce() -> String) -> Result<String, TaskError> {
    let done = command.stdin(Stdio::null()).output();
    let done = done.map_err(|source| TaskError::Start { program: command.get_program().into(), source })?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if done.status.success() {
        return Ok(text(&done.stdout));
    }
    let complaint = text(&done.stderr);
    let last = complaint.lines().rfind(|line| !line.trim().is_empty());
    let said = last.map_or_else(|| done.status.to_string(), |line| line.trim().to_owned());
    Err(TaskError::Failed { what: what(), said })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_complaint_is_told() {
        let shell = |script: &str| {
            output(Command::new("sh").args(["-c", script]), || "it".to_owned())
                .map_err(|error| error.to_string())
        };
        assert_eq!(shell("echo a; echo b >&2"), Ok("a\n".to_owned()));
        assert_eq!(shell("echo a >&2; echo b >&2; echo >&2; exit 3"), Err("it failed: b".to_owned()));
        assert_eq!(shell("exit 3"), Err("it failed: exit status: 3".to_owned()));
        let missing = output(&mut Command::new("/no/such"), || "it".to_owned()).unwrap_err();
        assert_eq!(missing.to_string(), "cannot start \"/no/such\"");
    }
}
