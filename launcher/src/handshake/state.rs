//! The launcher's side of the handshake as a pure machine.
//!
//! | state | child may say | engine may say | leaves when |
//! |---|---|---|---|
//! | `Starting` | `TapReady` (with the engine only), `NetworkReady` | `EngineReady` | both are ready: `Execute` goes out |
//! | `Executing` | nothing, its end closes; an init says `Started` | nothing | one of these |
//! | `Running` | an init: what becomes of CMD | `EngineReady`, if it is another one; `Failed` before it ends | CMD dies |
//!
//! `Failed` ends the launch in every state but `Running`.

use thiserror::Error;

use super::message::Message;
use crate::error::{Ending, Failure};
use crate::holder::TakenPort;

/// Who sent a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The process in the namespaces.
    Child,
    /// The engine process.
    Engine,
}

/// Whether the child brings a TAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// A TAP that the engine serves.
    Tap,
    /// No TAP, and no engine.
    None,
}

/// What the launcher has to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing yet.
    Wait,
    /// Hand the descriptor that came with the message to the engine.
    PassTap,
    /// Make the agent for the network namespace whose descriptor came with the message.
    TakeNamespace,
    /// Tell the child to run CMD.
    Execute,
    /// Tell the engine, which has taken another one's place, that CMD runs.
    Welcome,
    /// Remember why the engine is about to end.
    EngineFails(Failure),
    /// CMD runs; its pidfd came with the message.
    WatchCommand,
    /// CMD was stopped.
    Stop {
        /// By this signal.
        signal: i32,
        /// How often, this time included.
        count: u32,
    },
    /// CMD is dead.
    End(Ending),
    /// Give up.
    Fail(Failure),
    /// Give up, and say who has the port.
    FailForPort(TakenPort, Failure),
}

/// A message that the sender may not send now.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("unexpected {message} from the {peer}")]
pub struct HandshakeError {
    /// Debug form of the message.
    pub message: String,
    /// The sender.
    pub peer: &'static str,
}

/// The launcher's view of where the launch stands.
#[derive(Debug)]
pub struct ParentHandshake {
    tap_expected: bool,
    network_ready: bool,
    engine_ready: bool,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Executing,
    Running,
}

impl ParentHandshake {
    /// A launch with or without a TAP.
    pub fn new(link: Link) -> Self {
        ParentHandshake {
            tap_expected: link == Link::Tap,
            network_ready: false,
            engine_ready: link == Link::None,
            phase: Phase::Starting,
        }
    }

    /// Takes a message.
    ///
    /// # Errors
    /// The message is not allowed in this state.
    pub fn handle_message(&mut self, peer: Peer, message: Message) -> Result<Action, HandshakeError> {
        match (self.phase, peer, message) {
            (Phase::Running, Peer::Engine, Message::Failed(failure)) => Ok(Action::EngineFails(failure)),
            (_, _, Message::Failed(failure)) => Ok(Action::Fail(failure)),
            (_, Peer::Engine, Message::PortTaken(port, failure)) => Ok(Action::FailForPort(port, failure)),
            (Phase::Starting, Peer::Child, Message::TapReady) if self.tap_expected => {
                self.tap_expected = false;
                Ok(Action::PassTap)
            }
            (Phase::Starting, Peer::Child, Message::NetworkReady)
                if !self.tap_expected && !self.network_ready =>
            {
                self.network_ready = true;
                Ok(self.execute_if_ready())
            }
            (Phase::Starting, Peer::Child, Message::NetworkNamespace) if self.tap_expected => {
                Ok(Action::TakeNamespace)
            }
            (Phase::Executing, Peer::Child, Message::Started) => {
                self.phase = Phase::Running;
                Ok(Action::WatchCommand)
            }
            (Phase::Running, Peer::Child, Message::Stopped { signal, count }) => {
                Ok(Action::Stop { signal, count })
            }
            (Phase::Running, Peer::Child, Message::Continued) => Ok(Action::Wait),
            (Phase::Running, Peer::Child, Message::Ended(ending)) => Ok(Action::End(ending)),
            (Phase::Starting, Peer::Engine, Message::EngineReady) if !self.engine_ready => {
                self.engine_ready = true;
                Ok(self.execute_if_ready())
            }
            (Phase::Running, Peer::Engine, Message::EngineReady) if !self.engine_ready => {
                self.engine_ready = true;
                Ok(Action::Welcome)
            }
            (_, peer, message) => Err(HandshakeError {
                message: format!("{message:?}"),
                peer: match peer {
                    Peer::Child => "child",
                    Peer::Engine => "engine",
                },
            }),
        }
    }

    /// The child's end of the channel is closed: CMD runs, if it needs no init, or the child died (its exit status tells).
    pub fn handle_child_closed(&mut self) {
        if self.phase == Phase::Executing {
            self.phase = Phase::Running;
        }
    }

    /// Another engine was started in place of one that has died.
    pub fn handle_engine_restart(&mut self) {
        self.engine_ready = false;
    }

    /// Whether CMD has been executed, as far as is known.
    pub fn is_running(&self) -> bool {
        self.phase == Phase::Running
    }

    fn execute_if_ready(&mut self) -> Action {
        if !(self.network_ready && self.engine_ready) {
            return Action::Wait;
        }
        self.phase = Phase::Executing;
        Action::Execute
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Step;

    #[test]
    fn command_runs_only_when_network_and_engine_are_ready() {
        let mut handshake = ParentHandshake::new(Link::Tap);
        assert_eq!(handshake.handle_message(Peer::Child, Message::TapReady), Ok(Action::PassTap));
        assert_eq!(handshake.handle_message(Peer::Engine, Message::EngineReady), Ok(Action::Wait));
        assert_eq!(handshake.handle_message(Peer::Child, Message::NetworkReady), Ok(Action::Execute));
        assert!(!handshake.is_running());
        handshake.handle_child_closed();
        assert!(handshake.is_running());
    }

    #[test]
    fn without_engine_no_tap_is_taken_and_nobody_is_waited_for() {
        let mut handshake = ParentHandshake::new(Link::None);
        assert!(handshake.handle_message(Peer::Child, Message::TapReady).is_err());
        assert_eq!(handshake.handle_message(Peer::Child, Message::NetworkReady), Ok(Action::Execute));
    }

    #[test]
    fn wrong_order_and_repetition_are_refused() {
        let mut handshake = ParentHandshake::new(Link::Tap);
        assert!(handshake.handle_message(Peer::Child, Message::NetworkReady).is_err());
        assert!(handshake.handle_message(Peer::Engine, Message::TapReady).is_err());
        assert!(handshake.handle_message(Peer::Child, Message::Execute).is_err());
        handshake.handle_message(Peer::Child, Message::TapReady).unwrap();
        assert!(handshake.handle_message(Peer::Child, Message::TapReady).is_err());
        handshake.handle_message(Peer::Child, Message::NetworkReady).unwrap();
        assert!(handshake.handle_message(Peer::Child, Message::NetworkReady).is_err());
    }

    #[test]
    fn a_child_that_closes_early_does_not_count_as_running() {
        let mut handshake = ParentHandshake::new(Link::Tap);
        handshake.handle_child_closed();
        assert!(!handshake.is_running());
    }

    #[test]
    fn while_the_command_runs_engines_may_come_and_go() {
        let mut handshake = ParentHandshake::new(Link::Tap);
        for (peer, message) in [
            (Peer::Child, Message::TapReady),
            (Peer::Engine, Message::EngineReady),
            (Peer::Child, Message::NetworkReady),
        ] {
            handshake.handle_message(peer, message).unwrap();
        }
        handshake.handle_child_closed();
        assert!(handshake.handle_message(Peer::Engine, Message::EngineReady).is_err());
        let failure = Failure { step: Step::Engine, value: String::new(), errno: 1 };
        let action = handshake.handle_message(Peer::Engine, Message::Failed(failure.clone()));
        assert_eq!(action, Ok(Action::EngineFails(failure)));
        for _ in 0..2 {
            handshake.handle_engine_restart();
            assert_eq!(handshake.handle_message(Peer::Engine, Message::EngineReady), Ok(Action::Welcome));
        }
        assert!(handshake.is_running());
    }

    #[test]
    fn an_init_tells_what_becomes_of_the_command() {
        let mut handshake = ParentHandshake::new(Link::None);
        let mut child = |message| handshake.handle_message(Peer::Child, message);
        assert!(child(Message::Started).is_err());
        child(Message::NetworkReady).unwrap();
        assert!(child(Message::Ended(Ending::Exited(0))).is_err());
        assert_eq!(child(Message::Started), Ok(Action::WatchCommand));
        let stopped = Message::Stopped { signal: 19, count: 1 };
        assert_eq!(child(stopped), Ok(Action::Stop { signal: 19, count: 1 }));
        assert_eq!(child(Message::Continued), Ok(Action::Wait));
        assert_eq!(child(Message::Ended(Ending::Killed(9))), Ok(Action::End(Ending::Killed(9))));
        assert!(handshake.is_running());
    }

    #[test]
    fn a_failure_before_the_command_runs_ends_the_launch() {
        let failure = Failure { step: Step::Mount, value: String::new(), errno: 1 };
        let mut handshake = ParentHandshake::new(Link::Tap);
        let action = handshake.handle_message(Peer::Child, Message::Failed(failure.clone()));
        assert_eq!(action, Ok(Action::Fail(failure)));
    }
}
