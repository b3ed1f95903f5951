//! What a process of ours gives up once it is set up: root directory, capabilities, system calls.
