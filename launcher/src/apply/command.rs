//! Runs other programs that only have to say something, for so long and no longer.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Most that is read of what a program says.
const MAX_OUTPUT: usize = 64 * 1024;

/// What a program has said on both its outputs, and how it ended.
#[derive(Debug)]
pub struct Said {
    /// As text.
    pub text: String,
    /// Its end; a kill of ours if it has closed its outputs and goes on.
    pub status: ExitStatus,
}

impl Said {
    /// The first line that is not empty.
    pub fn first_line(&self) -> &str {
        self.text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default()
    }
}

/// A program on its way to say something.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pipe: File,
}

impl Running {
    /// Starts it.
    ///
    /// # Errors
    /// pipe(2), fork(2), execve(2).
    pub fn start(command: &mut Command) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        let child = command.spawn()?;
        // The command would keep the writing end open.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Running { child, pipe: File::from(OwnedFd::from(reader)) })
    }

    /// What it says until it closes its outputs. It does not outlive this.
    ///
    /// # Errors
    /// It was not done at the deadline ([`io::ErrorKind::TimedOut`]); read(2).
    pub fn listen(mut self, deadline: Instant) -> io::Result<Said> {
        let heard = self.hear(deadline);
        // Whoever has closed its outputs has nothing more to tell. A process that is ending ends as it wanted.
        let _ = self.child.kill();
        let status = self.child.wait()?;
        heard.map(|bytes| Said { text: String::from_utf8_lossy(&bytes).into_owned(), status })
    }

    fn hear(&mut self, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut heard = Vec::new();
        let mut some = [0; 4096];
        while heard.len() < MAX_OUTPUT {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)], timeout) {
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
                Ok(0) => return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not come to an end")),
                Ok(_) => {}
            }
            match self.pipe.read(&mut some)? {
                0 => break,
                count => heard.extend(some.iter().take(count)),
            }
        }
        Ok(heard)
    }
}

/// Starts it and listens.
///
/// # Errors
/// As [`Running::start`] and [`Running::listen`].
pub fn ask(command: &mut Command, deadline: Instant) -> io::Result<Said> {
    Running::start(command)?.listen(deadline)
}
