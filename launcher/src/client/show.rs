//! Answers for people.

use std::net::{IpAddr, SocketAddr};

use forwarder::spec::{Origin, PortFields};

use crate::api::model::{
    Capture, CaptureEnd, Dns, EgressPath, EgressState, FlowList, Info, Overlay, OverlayPeer, Policy,
    PortChange, PortEvent, PortSpec, PortStatus, Side, Statistics, Traffic,
};
use crate::state_dir::Instance;

/// What can be told to people; every line ends.
pub(super) trait Show {
    /// The text.
    fn to_text(&self) -> String;
}

impl Show for Info {
    fn to_text(&self) -> String {
        let mut rows = vec![
            ("state directory", self.state_dir.clone()),
            ("version", format!("{} (API {})", self.version, self.api_version)),
            ("command", format!("process {}", self.child_pid)),
        ];
        if self.engine_restarts > 0 {
            rows.push(("engine", format!("started again {} times", self.engine_restarts)));
        }
        if let Some(network) = &self.network_driver {
            let mtu = network.mtu.map_or_else(String::new, |mtu| format!(", MTU {mtu}"));
            rows.push(("network", format!("{}{mtu}", network.driver)));
            let addresses: Vec<_> = network.child_ip.into_iter().chain(network.child_ipv6).collect();
            rows.push(("  addresses", list(&addresses)));
            rows.push(("  gateways", list(&network.gateways)));
            rows.push(("  DNS", list(&network.dns)));
            if let Some(egress) = &network.egress {
                rows.push((
                    "  outbound TCP",
                    format!("IPv4 {}; IPv6 {}", way(&egress.ipv4), way(&egress.ipv6)),
                ));
            }
        }
        if let Some(ports) = &self.port_driver {
            rows.push(("ports", format!("{} ({})", ports.driver, ports.protos.join(", "))));
        }
        rows.retain(|(_, value)| !value.is_empty());
        rows.iter().map(|(name, value)| format!("{name:<15}  {value}\n")).collect()
    }
}

fn way(path: &EgressPath) -> String {
    match (path.path, &path.reason) {
        (EgressState::Relay, _) => "by the relay".to_owned(),
        (EgressState::Tap, None) => "by the TAP".to_owned(),
        (EgressState::Tap, Some(reason)) => format!("by the TAP ({reason})"),
        (EgressState::Untried, _) => "by the relay if it can be (the first connection will tell)".to_owned(),
    }
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")
}

impl Show for Vec<PortStatus> {
    fn to_text(&self) -> String {
        let mut table = Table::new(&["ID", "PROTO", "HOST", "CHILD", "SEEN AS", "BY"]);
        for PortStatus { id, spec, origin } in self {
            let origin = match origin {
                Origin::Asked => "request",
                Origin::Auto => "auto",
            };
            let source = spec.fields().source.name();
            table.row([&id.to_string(), spec.proto().name(), &host(spec), &child(spec), source, origin]);
        }
        table.to_text()
    }
}

fn host(spec: &PortSpec) -> String {
    let PortFields { parent_ip, parent_interface, parent_port, parent_port_end, .. } = spec.fields();
    let address = parent_ip.map_or_else(|| "*".to_owned(), bracketed);
    let interface = parent_interface.as_ref().map_or_else(String::new, |name| format!("%{}", name.as_str()));
    let end = parent_port_end.map_or_else(String::new, |end| format!("-{end}"));
    format!("{address}{interface}:{parent_port}{end}")
}

fn child(spec: &PortSpec) -> String {
    let PortFields { child_ip, child_port, .. } = spec.fields();
    let address = child_ip.map_or_else(String::new, bracketed);
    let end = match spec.count() {
        0 | 1 => String::new(),
        count => format!("-{}", spec.child_port_at(count - 1)),
    };
    format!("{address}:{child_port}{end}")
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

impl Show for PortEvent {
    fn to_text(&self) -> String {
        let what = match self.event {
            PortChange::Added => "added",
            PortChange::Removed => "removed",
        };
        format!("{what:<7}  {}  {}\n", self.port.id, self.port.spec)
    }
}

impl Show for Statistics {
    fn to_text(&self) -> String {
        let mut table = Table::new(&["", "FROM CHILD", "", "TO CHILD", ""]).right([1, 2, 3, 4]);
        for (name, traffic) in [
            ("frames", self.frames),
            ("tcp", self.tcp),
            ("udp", self.udp),
            ("icmp", self.icmp),
            ("dns", self.dns),
            ("dhcp", self.dhcp),
            ("overlay", self.overlay),
        ] {
            let Traffic { packets_from_child, bytes_from_child, packets_to_child, bytes_to_child } = traffic;
            table.row([
                name,
                &packets_from_child.to_string(),
                &bytes(bytes_from_child),
                &packets_to_child.to_string(),
                &bytes(bytes_to_child),
            ]);
        }
        let mut text = table.to_text();
        text.push_str(&format!(
            "tcp connections: {} opened, {} failed to connect, {} reset\n\
             dns answers: {} static, {} SERVFAIL\nflows: {}, with {} of buffers\n",
            self.tcp_opened,
            self.tcp_connect_failed,
            self.tcp_reset,
            self.dns_static,
            self.dns_servfail,
            self.flows,
            bytes(self.buffer_bytes)
        ));
        let relay = &self.relay;
        if relay.joined + relay.refused > 0 {
            text.push_str(&format!(
                "on the relay: {} connections, {} since the start; {} took the TAP instead; {} from child, {} to child\n",
                relay.connections,
                relay.joined,
                relay.refused,
                bytes(relay.bytes_from_child),
                bytes(relay.bytes_to_child)
            ));
        }
        if let Some(ports) = &self.forwards {
            text.push_str(&format!(
                "published ports: {}, with {} connections and {} UDP sessions; {} connections since the start, \
                 {} refused, {} beyond a limit; {} from child, {} to child\n",
                ports.forwards,
                ports.connections,
                ports.sessions,
                ports.accepted,
                ports.refused,
                ports.limited,
                bytes(ports.bytes_from_child),
                bytes(ports.bytes_to_child)
            ));
        }
        for drops in &self.drops {
            text.push_str(&format!("dropped {}: {}\n", drops.count, drops.reason));
        }
        text
    }
}

impl Show for FlowList {
    fn to_text(&self) -> String {
        let columns = ["PROTO", "CHILD", "", "REMOTE", "STATE", "PATH", "FROM CHILD", "TO CHILD", "IDLE"];
        let mut table = Table::new(&columns).right([6, 7, 8]);
        for flow in &self.flows {
            table.row([
                flow.protocol.name(),
                &flow.child.to_string(),
                match flow.opened_by {
                    Side::Child => "->",
                    Side::Host => "<-",
                },
                &flow.remote.map_or_else(|| "any".to_owned(), |remote: SocketAddr| remote.to_string()),
                flow.phase.as_deref().unwrap_or("-"),
                flow.path.name(),
                &bytes(flow.bytes_from_child),
                &bytes(flow.bytes_to_child),
                &format!("{} s", flow.idle_seconds),
            ]);
        }
        let mut text = table.to_text();
        match self.total.saturating_sub(self.flows.len() as u64) {
            0 => {}
            more => text.push_str(&format!("... and {more} more\n")),
        }
        text
    }
}

impl Show for Policy {
    fn to_text(&self) -> String {
        if self.rules.is_empty() {
            return "no rules: everything is allowed\n".to_owned();
        }
        let mut table = Table::new(&["DECIDED", "RULE"]).right([0]);
        let hits = self.hits.iter().map(u64::to_string).chain(std::iter::repeat("-".to_owned()));
        for (rule, hits) in self.rules.iter().zip(hits) {
            table.row([&hits, rule]);
        }
        table.to_text()
    }
}

impl Show for Overlay {
    fn to_text(&self) -> String {
        let allowed = match self.allowed.as_slice() {
            [] => "those that the child sends to".to_owned(),
            nets => nets.join(", "),
        };
        let mut text = format!("UDP port {}; peers that may send: {allowed}\n", self.port);
        if let Some(stranger) = self.last_refused {
            text.push_str(&format!("{} datagrams refused, the latest of {stranger}\n", self.refused));
        }
        if self.peers.is_empty() {
            return text;
        }
        let mut table =
            Table::new(&["PEER", "FROM CHILD", "", "TO CHILD", "", "IDLE"]).right([1, 2, 3, 4, 5]);
        for OverlayPeer { address, traffic, idle_seconds } in &self.peers {
            table.row([
                &address.to_string(),
                &traffic.packets_from_child.to_string(),
                &bytes(traffic.bytes_from_child),
                &traffic.packets_to_child.to_string(),
                &bytes(traffic.bytes_to_child),
                &format!("{idle_seconds} s"),
            ]);
        }
        text + &table.to_text()
    }
}

impl Show for Dns {
    fn to_text(&self) -> String {
        let from = if self.follows_host { " (of the host's resolv.conf)" } else { "" };
        let servers: Vec<_> = self.servers.iter().map(SocketAddr::to_string).collect();
        let mut text = format!("servers{from}: {}\n", servers.join(", "));
        for name in &self.names {
            text.push_str(&format!("{} {}\n", name.name, name.address));
        }
        text
    }
}

impl Show for Capture {
    fn to_text(&self) -> String {
        let state = match (self.running, self.ended) {
            (true, _) => "the capture runs",
            (false, None) => "no capture runs",
            (false, Some(CaptureEnd::Limit)) => "the capture has reached its limit",
            (false, Some(CaptureEnd::WriteFailed)) => {
                "the capture ended because the file could not be written"
            }
        };
        format!("{state}; {} frames, {} written\n", self.frames, bytes(self.bytes))
    }
}

impl Show for Vec<Instance> {
    fn to_text(&self) -> String {
        let mut table = Table::new(&["NAME", "LAUNCHER", "COMMAND", "STATE DIRECTORY"]);
        let pid = |pid: Option<nix::unistd::Pid>| pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        for instance in self {
            let path = instance.path.display().to_string();
            table.row([&instance.name, &pid(instance.launcher), &pid(instance.child), &path]);
        }
        table.to_text()
    }
}

/// An amount with the unit that keeps it below 1024.
pub(super) fn bytes(count: u64) -> String {
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    let mut amount = count as f64;
    for next in units {
        // What would be rounded up to 1024.0 goes on too.
        if amount < 1023.95 {
            break;
        }
        amount /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{count} B") } else { format!("{amount:.1} {unit}") }
}

/// Columns two blanks apart.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<usize>,
}

impl Table {
    pub(super) fn new(heads: &[&str]) -> Self {
        Table { rows: vec![heads.iter().map(|&head| head.to_owned()).collect()], right: Vec::new() }
    }

    /// With these columns flush right.
    pub(super) fn right(mut self, columns: impl Into<Vec<usize>>) -> Self {
        self.right = columns.into();
        self
    }

    pub(super) fn row<const COLUMNS: usize>(&mut self, cells: [&str; COLUMNS]) {
        self.rows.push(cells.map(str::to_owned).into());
    }

    pub(super) fn to_text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cell = |row: &Vec<String>, column: usize| row.get(column).map_or(0, |cell| cell.chars().count());
        let width = |column| self.rows.iter().map(|row| cell(row, column)).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let padded = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
                if self.right.contains(&column) {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            });
            text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_a_table() {
        let port = |id, text: &str, origin| PortStatus { id, spec: text.parse().unwrap(), origin };
        let ports = vec![
            port(1, "127.0.0.1:8080:80/tcp", Origin::Asked),
            port(12, "[::1]:8000-8010:[fd00::1]:9000/udp,source=gateway", Origin::Auto),
            port(13, "%eth0:53:53/udp4", Origin::Asked),
        ];
        let expected = "\
ID  PROTO  HOST             CHILD                SEEN AS  BY
1   tcp    127.0.0.1:8080   :80                  client   request
12  udp    [::1]:8000-8010  [fd00::1]:9000-9010  gateway  auto
13  udp4   *%eth0:53        :53                  client   request
";
        assert_eq!(ports.to_text(), expected);
    }

    #[test]
    fn amounts_have_their_unit() {
        let shown = [0, 1023, 1024, 1536, 1_048_575, 5 << 30, u64::MAX].map(bytes);
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "5.0 GiB", "16384.0 PiB"]);
    }

    #[test]
    fn what_the_limit_left_out_is_counted() {
        let list = FlowList { total: 5, flows: Vec::new() };
        assert!(list.to_text().ends_with("... and 5 more\n"));
    }
}
