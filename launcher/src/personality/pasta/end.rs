//! When to end: the namespace is gone, or whoever started the engine.

use std::ffi::OsString;
use std::io::{self, PipeReader};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::unistd::Pid;

use super::cli::{Request, Target};
use crate::sys::pidfd;

/// Readable when there is something to look at; [`End::has_come`] says whether it is the end.
#[derive(Debug)]
pub(super) struct End {
    events: Epoll,
    watch: Option<Watch>,
}

#[derive(Debug)]
enum Watch {
    /// A process: readable when it is dead.
    Process(OwnedFd),
    /// The pipe of another process: hung up when that is dead.
    Line(PipeReader),
    /// A name in a directory.
    Name(Inotify, OsString),
}

impl End {
    /// Of the namespace that was asked for. It is watched by its process or its path: the namespace itself lives for
    /// as long as it has sockets, such as ours.
    ///
    /// # Errors
    /// pidfd_open(2), inotify(7); `ENOENT` if the path is gone already.
    pub(super) fn of(request: &Request) -> io::Result<Self> {
        let watch = match &request.target {
            _ if request.no_netns_quit => None,
            Target::Command(_) => None,
            Target::Process { pid, .. } => Some(Watch::Process(pidfd::open(*pid)?)),
            Target::Path { netns, .. } => match process_of(netns) {
                Some(pid) => Some(Watch::Process(pidfd::open(pid)?)),
                None => watch_name(netns)?,
            },
        };
        Self::new(watch)
    }

    /// Of whoever holds the other end of a pipe.
    ///
    /// # Errors
    /// epoll(7).
    pub(super) fn of_line(line: PipeReader) -> io::Result<Self> {
        Self::new(Some(Watch::Line(line)))
    }

    fn new(watch: Option<Watch>) -> io::Result<Self> {
        let events = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        if let Some(watch) = &watch {
            events.add(watch.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        }
        Ok(End { events, watch })
    }

    /// Makes it readable for another reason as well.
    ///
    /// # Errors
    /// epoll_ctl(2).
    pub(super) fn also(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(self.events.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 1))?)
    }

    /// Whether it has come; takes in what has happened.
    pub(super) fn has_come(&self) -> bool {
        match &self.watch {
            None => false,
            Some(Watch::Process(_) | Watch::Line(_)) => {
                let mut events = [EpollEvent::empty(); 2];
                let count = self.events.wait(&mut events, 0u8).unwrap_or(0);
                events.iter().take(count).any(|event| event.data() == 0)
            }
            Some(Watch::Name(inotify, name)) => match inotify.read_events() {
                Ok(events) => events.iter().any(|event| {
                    event.mask.intersects(AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_DELETE_SELF)
                        || event.name.as_ref() == Some(name)
                }),
                Err(_) => false,
            },
        }
    }

    /// Its descriptors.
    pub(super) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        std::iter::once(self.as_fd()).chain(self.watch.as_ref().map(AsFd::as_fd)).collect()
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.0.as_fd()
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Watch::Process(fd) => fd.as_fd(),
            Watch::Line(pipe) => pipe.as_fd(),
            Watch::Name(inotify, _) => inotify.as_fd(),
        }
    }
}

/// The process whose directory in /proc the path leads through: nothing happens there when it ends.
fn process_of(path: &Path) -> Option<Pid> {
    let mut parts = path.components();
    let root = [parts.next()?, parts.next()?];
    if root != [Component::RootDir, Component::Normal("proc".as_ref())] {
        return None;
    }
    match parts.next()? {
        Component::Normal(name) => name.to_str()?.parse().ok().map(Pid::from_raw),
        _ => None,
    }
}

fn watch_name(path: &Path) -> io::Result<Option<Watch>> {
    let Some(name) = path.file_name() else { return Ok(None) };
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let gone = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_DELETE_SELF;
    inotify.add_watch(&directory, gone)?;
    // What went before the watch was there is not told.
    if !path.exists() {
        return Err(Errno::ENOENT.into());
    }
    Ok(Some(Watch::Name(inotify, name.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_found_in_paths() {
        assert_eq!(process_of(Path::new("/proc/12/ns/net")), Some(Pid::from_raw(12)));
        for path in ["/proc/self/ns/net", "/run/netns/12", "/proc", "proc/12/ns/net"] {
            assert_eq!(process_of(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn only_the_name_itself_is_the_end() {
        let directory = std::env::temp_dir().join(format!("pasta-end-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = |name: &str| directory.join(name);
        for name in ["it", "other"] {
            std::fs::write(path(name), "").unwrap();
        }
        let end = End::new(watch_name(&path("it")).unwrap()).unwrap();
        std::fs::remove_file(path("other")).unwrap();
        assert!(!end.has_come());
        std::fs::remove_file(path("it")).unwrap();
        assert!(end.has_come());
        assert!(watch_name(&path("it")).is_err());
        std::fs::remove_dir(directory).unwrap();
    }

    #[test]
    fn a_closed_line_is_the_end() {
        let (line, other) = io::pipe().unwrap();
        let end = End::of_line(line).unwrap();
        assert!(!end.has_come());
        drop(other);
        assert!(end.has_come());
    }
}
