//! What the TAP does for us may be limited; what arrives is the same.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::thread;

use crate::support::{has_program, has_tap, launcher, stderr};

#[test]
fn a_stream_returns_intact_whatever_is_offloaded() {
    if !has_tap() || !has_program("bash") {
        return;
    }
    let sent: Vec<u8> = (0..500_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    for (mode, wanted) in [
        ("auto", "checksum on"),
        ("checksum", "checksum on, tso4 off, tso6 off, uso off"),
        ("none", "checksum off, tso4 off, tso6 off, uso off"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let script =
            format!("exec 3<>/dev/tcp/10.0.42.2/{}; cat <&3 >&3", listener.local_addr().unwrap().port());
        let offload = format!("--offload={mode}");
        let options = ["--ipv6=off", "--allow-host-loopback", "--stats", &offload];
        let mut command = launcher(&options, &["bash", "-c", &script]);
        let launch = thread::spawn(move || command.output().unwrap());

        let (mut stream, _) = listener.accept().unwrap();
        let (mut writer, bytes) = (stream.try_clone().unwrap(), sent.clone());
        let sender = thread::spawn(move || {
            writer.write_all(&bytes).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut returned = Vec::new();
        stream.read_to_end(&mut returned).unwrap();
        sender.join().unwrap();
        assert!(returned == sent, "{mode}: {} bytes of {} returned", returned.len(), sent.len());

        let output = launch.join().unwrap();
        assert!(output.status.success(), "{mode}: {}", stderr(&output));
        assert!(stderr(&output).contains(wanted), "{mode}: {}", stderr(&output));
    }
}
