//! Which datagrams of a batch can travel as one super-datagram: to the child as `VIRTIO_NET_HDR_GSO_UDP_L4`,
//! to the host as `UDP_SEGMENT` (udp(7)). Only sizes are looked at; source and destination are the same.

use std::ops::Range;

use super::IpVersion;

/// What fits one super-datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunLimits {
    /// Payload bytes of one datagram.
    pub datagram: usize,
    /// Payload bytes of all datagrams.
    pub total: usize,
    /// Number of datagrams.
    pub count: usize,
}

impl RunLimits {
    /// For a link of this MTU. 64 is the kernel's `UDP_MAX_SEGMENTS` before Linux 6.9; 65535 bytes hold the
    /// IPv6 and UDP headers too.
    pub fn for_link(mtu: u16, ip_version: IpVersion) -> Self {
        let headers = match ip_version {
            IpVersion::V4 => 28,
            IpVersion::V6 => 48,
        };
        RunLimits { datagram: usize::from(mtu).saturating_sub(headers), total: 65535 - 48, count: 64 }
    }
}

/// Neighbouring datagrams that travel together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which.
    pub range: Range<usize>,
    /// Payload bytes of each but the last, which may have less; `None` where the run is one datagram.
    pub gso: Option<u16>,
}

/// Cuts a batch of datagrams with these payload `sizes` into maximal runs, in order. A datagram that is empty
/// or longer than the limit stands alone.
pub fn runs(sizes: &[usize], limits: RunLimits) -> impl Iterator<Item = Run> + '_ {
    let mut start = 0;
    std::iter::from_fn(move || {
        let (&size, following) = sizes.get(start..)?.split_first()?;
        let begin = start;
        start += 1;
        if size > 0 && size <= limits.datagram {
            let count = limits.count.min(limits.total / size);
            for &next in following.iter().take(count.saturating_sub(1)) {
                // An empty datagram would vanish: nobody can tell it from the end of the payload.
                if next > size || next == 0 {
                    break;
                }
                start += 1;
                if next < size {
                    break;
                }
            }
        }
        let gso = if start - begin > 1 { u16::try_from(size).ok() } else { None };
        Some(Run { range: begin..start, gso })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lengths(sizes: &[usize]) -> Vec<usize> {
        let limits = RunLimits::for_link(1500, IpVersion::V4);
        runs(sizes, limits).map(|run| run.range.len()).collect()
    }

    #[test]
    fn equal_sizes_run_and_the_last_may_be_shorter() {
        assert_eq!(lengths(&[]), [0; 0]);
        assert_eq!(lengths(&[100]), [1]);
        assert_eq!(lengths(&[100, 100, 100]), [3]);
        assert_eq!(lengths(&[100, 100, 50, 50, 100]), [3, 1, 1]);
        assert_eq!(lengths(&[50, 100, 100]), [1, 2]);
    }

    #[test]
    fn empty_and_oversized_datagrams_stand_alone() {
        assert_eq!(lengths(&[0, 0]), [1, 1]);
        assert_eq!(lengths(&[100, 0, 100]), [1, 1, 1]);
        assert_eq!(lengths(&[1472, 1472, 1473, 1473]), [2, 1, 1]);
    }

    #[test]
    fn a_run_has_at_most_64_datagrams_and_64_kib() {
        assert_eq!(lengths(&[10; 130]), [64, 64, 2]);
        assert_eq!(lengths(&[1472; 50]), [44, 6]);
    }

    proptest! {
        #[test]
        fn runs_cover_all_fit_and_are_maximal(
            sizes in proptest::collection::vec(prop_oneof![Just(0usize), Just(1400), Just(1472), 0..1600usize], 0..200),
        ) {
            let limits = RunLimits::for_link(1500, IpVersion::V4);
            // The rule as one reads it in udp(7).
            let valid = |run: &[usize]| match run.split_last() {
                None => false,
                Some((_, [])) => true,
                Some((&last, rest)) => {
                    let size = rest[0];
                    rest.iter().all(|&other| other == size)
                        && (1..=size).contains(&last)
                        && size <= limits.datagram
                        && run.len() <= limits.count
                        && run.iter().sum::<usize>() <= limits.total
                }
            };
            let mut at = 0;
            for run in runs(&sizes, limits) {
                prop_assert_eq!(run.range.start, at);
                at = run.range.end;
                prop_assert!(valid(&sizes[run.range.clone()]));
                prop_assert_eq!(run.gso.map(usize::from), (run.range.len() > 1).then(|| sizes[run.range.start]));
                if at < sizes.len() {
                    let total = |run: &[usize]| run.iter().sum::<usize>();
                    let longer = &sizes[run.range.start..=at];
                    // Full is judged by equal sizes: a shorter last one that just fits is not waited for.
                    let full = total(&sizes[run.range.clone()]) + sizes[run.range.start] > limits.total;
                    prop_assert!(full || !valid(longer));
                }
            }
            prop_assert_eq!(at, sizes.len());
        }
    }
}
