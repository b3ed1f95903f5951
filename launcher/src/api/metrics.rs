//! Counters as OpenMetrics text.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::model::{Statistics, Traffic};

/// The text's media type.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Writes `statistics` of a program of `version`.
///
/// # Errors
/// None that is known: writing to a string does not fail.
pub fn text(statistics: Statistics, version: &str) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("rootless_launch");
    registry.register_collector(Box::new(Snapshot { statistics, version: version.to_owned() }));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Snapshot {
    statistics: Statistics,
    version: String,
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut page = Page(&mut encoder);
        let now = &self.statistics;
        page.labelled(
            Kind::Gauge,
            "build",
            "The running program",
            [([("version", self.version.as_str())], 1)],
        )?;
        page.labelled(
            Kind::Counter,
            "packets",
            "Packets by protocol and direction",
            by_direction(now, |traffic| (traffic.packets_from_child, traffic.packets_to_child)),
        )?;
        page.labelled(
            Kind::Counter,
            "payload_bytes",
            "Payload bytes by protocol and direction",
            by_direction(now, |traffic| (traffic.bytes_from_child, traffic.bytes_to_child)),
        )?;
        let drops = now.drops.iter().map(|drops| ([("reason", drops.reason.as_str())], drops.count));
        page.labelled(Kind::Counter, "drops", "Packets dropped, by reason", drops)?;
        page.counter("tcp_connections", "TCP connections of the child", now.tcp_opened)?;
        page.counter(
            "tcp_connect_failures",
            "Those that the host could not connect",
            now.tcp_connect_failed,
        )?;
        page.counter("tcp_resets", "Those that ended by a RST", now.tcp_reset)?;
        page.counter("dns_static_answers", "DNS answers from static names", now.dns_static)?;
        page.counter("dns_failures", "DNS queries that no server answered", now.dns_servfail)?;
        page.gauge("flows", "Flows at this moment", now.flows)?;
        page.gauge("buffer_bytes", "Ring memory that TCP flows may use", now.buffer_bytes)?;
        let relay = &now.relay;
        page.gauge(
            "relay_connections",
            "Outbound connections on the relay at this moment",
            relay.connections,
        )?;
        page.counter("relay_joined", "Outbound connections on the relay", relay.joined)?;
        page.counter("relay_refused", "Those that were offered to it and took the TAP", relay.refused)?;
        page.counter("relay_bytes_from_child", "Bytes on the relay", relay.bytes_from_child)?;
        page.counter("relay_bytes_to_child", "Bytes on the relay", relay.bytes_to_child)?;
        page.counter(
            "engine_restarts",
            "Engines that have died and whose place another has taken",
            now.engine_restarts,
        )?;
        let Some(ports) = &now.forwards else { return Ok(()) };
        page.gauge("forwards", "Published ports", ports.forwards)?;
        page.gauge(
            "forward_connections",
            "Connections to published ports at this moment",
            ports.connections,
        )?;
        page.gauge("forward_sessions", "UDP sessions of published ports at this moment", ports.sessions)?;
        page.counter("forward_accepted", "Connections to published ports", ports.accepted)?;
        page.counter("forward_refused", "Those that the child did not take", ports.refused)?;
        page.counter("forward_limited", "Those beyond a limit", ports.limited)?;
        page.counter("forward_bytes_from_child", "Bytes of published ports", ports.bytes_from_child)?;
        page.counter("forward_bytes_to_child", "Bytes of published ports", ports.bytes_to_child)
    }
}

/// Labels of a metric, and its value.
type Row<'a, const LABELS: usize> = ([(&'a str, &'a str); LABELS], u64);

fn by_direction(
    statistics: &Statistics,
    values: impl Fn(&Traffic) -> (u64, u64),
) -> impl Iterator<Item = Row<'static, 2>> {
    let kinds = [
        ("tcp", &statistics.tcp),
        ("udp", &statistics.udp),
        ("icmp", &statistics.icmp),
        ("dns", &statistics.dns),
        ("dhcp", &statistics.dhcp),
        ("overlay", &statistics.overlay),
        ("all", &statistics.frames),
    ];
    let rows = kinds.map(|(protocol, traffic)| {
        let (from_child, to_child) = values(traffic);
        let row = |direction, value| ([("protocol", protocol), ("direction", direction)], value);
        [row("from_child", from_child), row("to_child", to_child)]
    });
    rows.into_iter().flatten()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
}

struct Page<'p, 'e>(&'p mut DescriptorEncoder<'e>);

impl Page<'_, '_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        ConstCounter::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Counter)?)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        ConstGauge::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }

    fn labelled<'a, const LABELS: usize>(
        &mut self,
        kind: Kind,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = Row<'a, LABELS>>,
    ) -> fmt::Result {
        let metric = match kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
        };
        let mut family = self.0.encode_descriptor(name, help, None, metric)?;
        for (labels, value) in rows {
            let encoder = family.encode_family(&labels)?;
            match kind {
                Kind::Counter => ConstCounter::new(value).encode(encoder)?,
                Kind::Gauge => ConstGauge::new(value).encode(encoder)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::model::{Drops, RelayStatistics};

    #[test]
    fn every_counter_is_a_line() {
        let statistics = Statistics {
            tcp: Traffic { bytes_from_child: 7, ..Traffic::default() },
            drops: vec![Drops { reason: "bad \"checksum\"".into(), count: 3 }],
            flows: 2,
            relay: RelayStatistics { joined: 5, ..RelayStatistics::default() },
            ..Statistics::default()
        };
        let text = text(statistics, "1.2.3").unwrap();
        for line in [
            r#"rootless_launch_build{version="1.2.3"} 1"#,
            r#"rootless_launch_payload_bytes_total{protocol="tcp",direction="from_child"} 7"#,
            r#"rootless_launch_drops_total{reason="bad \"checksum\""} 3"#,
            "# TYPE rootless_launch_flows gauge",
            "rootless_launch_flows 2",
            "rootless_launch_relay_joined_total 5",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in:\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        assert!(!text.contains("forward"), "nobody publishes ports");
    }
}
