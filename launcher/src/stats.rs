//! Statistics of the engine as people read them.

use std::fmt;

use netstack::Driver;
use netstack::stats::Traffic;

/// Prints counters, drops by reason, and what the TAP does for us.
#[derive(Debug)]
pub struct StatsReport<'a>(pub &'a Driver);

impl fmt::Display for StatsReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = self.0.stats();
        let link = self.0.tap().capabilities();
        let on = |on: bool| if on { "on" } else { "off" };
        writeln!(
            f,
            "tap {}: checksum {}, tso4 {}, tso6 {}, uso {}",
            self.0.tap().name(),
            on(link.checksum),
            on(link.tso4),
            on(link.tso6),
            on(link.uso)
        )?;
        let rows = [
            ("frames", stats.frames),
            ("tcp", stats.tcp),
            ("udp", stats.udp),
            ("icmp", stats.icmp),
            ("dns", stats.dns),
            ("dhcp", stats.dhcp),
        ];
        writeln!(f, "{:8} {:>24} {:>28}", "", "from child", "to child")?;
        for (name, Traffic { packets_from_child, bytes_from_child, packets_to_child, bytes_to_child }) in rows
        {
            writeln!(
                f,
                "{name:8} {packets_from_child:>10} {bytes_from_child:>13} B {packets_to_child:>12} {bytes_to_child:>13} B"
            )?;
        }
        writeln!(
            f,
            "tcp connections: {} opened, {} failed to connect, {} reset",
            stats.tcp_opened, stats.tcp_connect_failed, stats.tcp_reset
        )?;
        writeln!(f, "dns answers: {} static, {} SERVFAIL", stats.dns_static, stats.dns_servfail)?;
        for (reason, count) in stats.all_drops() {
            writeln!(f, "dropped {count:>10}: {reason}")?;
        }
        Ok(())
    }
}
