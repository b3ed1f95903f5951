//! Which user and group ids exist in the child (user_namespaces(7), subuid(5)).
//!
//! The caller's own id becomes 0. With subordinate ids, 1 and up are those ranges one after the other. Real
//! root keeps all ids as they are. Each plan has the single id as its last resort.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use serde::Serialize;

use super::facts::HostFacts;

/// Most lines that the kernel takes (Linux 4.15).
const MAX_EXTENTS: usize = 340;

/// One line of uid_map or gid_map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// First id in the child.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.inside, self.outside, self.count)
    }
}

/// How one of the two maps is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MapPlan {
    /// By newuidmap(1) or newgidmap(1), which is allowed to map subordinate ids.
    Helper {
        /// The program.
        program: PathBuf,
        /// The lines.
        extents: Vec<Extent>,
    },
    /// By ourselves: the caller is privileged.
    Direct(Vec<Extent>),
    /// By ourselves: the caller's own id only. Why not more stands here.
    Single(SingleReason),
}

/// Why only one id is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SingleReason {
    /// newuidmap or newgidmap is not installed.
    NoHelper,
    /// The caller has no subordinate ids.
    NoRange,
}

impl fmt::Display for SingleReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SingleReason::NoHelper => "newuidmap and newgidmap are not installed",
            SingleReason::NoRange => "the user has no subordinate ids in /etc/subuid and /etc/subgid",
        })
    }
}

impl fmt::Display for MapPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = |extents: &[Extent]| extents.iter().map(Extent::to_string).collect::<Vec<_>>().join(", ");
        match self {
            MapPlan::Helper { program, extents } => write!(f, "{} by {}", lines(extents), program.display()),
            MapPlan::Direct(extents) => f.write_str(&lines(extents)),
            MapPlan::Single(reason) => write!(f, "the caller's alone, as 0: {reason}"),
        }
    }
}

impl MapPlan {
    /// Highest id in the child.
    pub fn last_id(&self) -> u32 {
        let extents = match self {
            MapPlan::Helper { extents, .. } | MapPlan::Direct(extents) => &extents[..],
            MapPlan::Single(_) => &[],
        };
        extents.iter().map(|extent| extent.inside.saturating_add(extent.count - 1)).max().unwrap_or(0)
    }
}

/// Both maps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IdMapPlan {
    /// The caller's user id.
    pub uid: u32,
    /// The caller's group id.
    pub gid: u32,
    /// User ids.
    pub users: MapPlan,
    /// Group ids.
    pub groups: MapPlan,
}

impl IdMapPlan {
    /// Decides by the caller and his subordinate ids. Both maps or none: a file owned by a mapped user and an
    /// unmapped group helps nobody.
    pub fn new(facts: &HostFacts) -> Self {
        let plan = |users, groups| IdMapPlan { uid: facts.uid, gid: facts.gid, users, groups };
        if facts.uid == 0 {
            return plan(
                MapPlan::Direct(identity(&facts.uid_map)),
                MapPlan::Direct(identity(&facts.gid_map)),
            );
        }
        let (Some(newuidmap), Some(newgidmap)) = (&facts.newuidmap, &facts.newgidmap) else {
            return plan(MapPlan::Single(SingleReason::NoHelper), MapPlan::Single(SingleReason::NoHelper));
        };
        // Both files are keyed by the user, not the group (subgid(5)).
        let users = subordinate(&facts.subuid, facts, facts.uid);
        let groups = subordinate(&facts.subgid, facts, facts.gid);
        if users.is_empty() || groups.is_empty() {
            return plan(MapPlan::Single(SingleReason::NoRange), MapPlan::Single(SingleReason::NoRange));
        }
        plan(
            MapPlan::Helper { program: newuidmap.clone(), extents: after_own(facts.uid, &users) },
            MapPlan::Helper { program: newgidmap.clone(), extents: after_own(facts.gid, &groups) },
        )
    }
}

/// Every id that exists here, unchanged.
fn identity(map: &str) -> Vec<Extent> {
    map.lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let inside = fields.next()?.parse().ok()?;
            let count = fields.nth(1)?.parse().ok()?;
            Some(Extent { inside, outside: inside, count })
        })
        .collect()
}

/// The ranges of a subuid(5) text for this user, by name or by number, without the id `own`, which is mapped already, and each id
/// once, however often it is listed: the kernel takes no id twice.
fn subordinate(text: &str, facts: &HostFacts, own: u32) -> Vec<Range<u32>> {
    let number = facts.uid.to_string();
    let is_caller = |owner: &str| owner == number || facts.user.as_deref() == Some(owner);
    let mut ranges = Vec::new();
    for (_, range) in listed(text).filter(|(owner, _)| is_caller(owner)) {
        let mut left = vec![range];
        for taken in ranges.iter().chain([&(own..own.saturating_add(1))]) {
            left = left.into_iter().flat_map(|range| without(range, taken)).collect();
        }
        ranges.extend(left);
    }
    ranges
}

/// Owners and ranges of a subuid(5) text.
fn listed(text: &str) -> impl Iterator<Item = (&str, Range<u32>)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        let start: u32 = fields.next()?.trim().parse().ok()?;
        let count: u32 = fields.next()?.trim().parse().ok()?;
        Some((owner, start..start.checked_add(count)?))
    })
}

fn without(range: Range<u32>, taken: &Range<u32>) -> impl Iterator<Item = Range<u32>> {
    let parts = [range.start..range.end.min(taken.start), range.start.max(taken.end)..range.end];
    parts.into_iter().filter(|part| !part.is_empty())
}

/// So many ids that nobody has in these subuid(5) texts, from where useradd(8) begins to give them out; `None` if there are none.
pub fn free_ids(count: u32, texts: [&str; 2]) -> Option<Range<u32>> {
    // login.defs(5): SUB_UID_MIN, SUB_UID_MAX.
    const FIRST: u32 = 100_000;
    const LAST: u32 = 600_100_000;
    let mut taken: Vec<_> = texts.into_iter().flat_map(listed).map(|(_, range)| range).collect();
    taken.sort_by_key(|range| range.start);
    let start = taken.iter().fold(FIRST, |start, range| {
        let overlaps = range.start < start.saturating_add(count) && start < range.end;
        if overlaps { range.end } else { start }
    });
    let end = start.checked_add(count)?;
    (end <= LAST).then_some(start..end)
}

/// `own` as 0, the ranges from 1 on.
fn after_own(own: u32, ranges: &[Range<u32>]) -> Vec<Extent> {
    let mut extents = vec![Extent { inside: 0, outside: own, count: 1 }];
    let mut inside: u32 = 1;
    for range in ranges.iter().take(MAX_EXTENTS - 1) {
        let count = range.end - range.start;
        // The last id, -1, means "unchanged" to chown(2) and exists nowhere.
        let Some(next) = inside.checked_add(count) else { break };
        extents.push(Extent { inside, outside: range.start, count });
        inside = next;
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> HostFacts {
        HostFacts {
            uid: 1000,
            gid: 100,
            user: Some("ann".into()),
            subuid: "bob:1:2\nann:100000:65536\n".into(),
            subgid: "ann:200000:65536\n".into(),
            newuidmap: Some("/usr/bin/newuidmap".into()),
            newgidmap: Some("/usr/bin/newgidmap".into()),
            ..HostFacts::default()
        }
    }

    fn lines(plan: &MapPlan) -> Vec<String> {
        match plan {
            MapPlan::Helper { extents, .. } | MapPlan::Direct(extents) => {
                extents.iter().map(Extent::to_string).collect()
            }
            MapPlan::Single(reason) => vec![reason.to_string()],
        }
    }

    #[test]
    fn own_id_is_root_and_subordinate_ids_follow() {
        let plan = IdMapPlan::new(&user());
        assert_eq!(lines(&plan.users), ["0 1000 1", "1 100000 65536"]);
        assert_eq!(lines(&plan.groups), ["0 100 1", "1 200000 65536"]);
        assert_eq!(plan.groups.last_id(), 65536);
    }

    #[test]
    fn ranges_by_number_and_several_ranges_are_joined() {
        let facts = HostFacts { subuid: "1000:300000:10\nann:100000:5\n1000x:1:1\n".into(), ..user() };
        assert_eq!(lines(&IdMapPlan::new(&facts).users), ["0 1000 1", "1 300000 10", "11 100000 5"]);
    }

    #[test]
    fn own_id_inside_a_range_is_mapped_once() {
        let facts = HostFacts { subuid: "ann:900:200\n".into(), ..user() };
        assert_eq!(lines(&IdMapPlan::new(&facts).users), ["0 1000 1", "1 900 100", "101 1001 99"]);
        let facts = HostFacts { subuid: "ann:1000:1\n".into(), ..user() };
        assert_eq!(IdMapPlan::new(&facts).users, MapPlan::Single(SingleReason::NoRange));
    }

    #[test]
    fn ids_that_are_listed_twice_are_mapped_once() {
        let subuid = "ann:100000:65536\n1000:100000:65536\nann:90000:20000\nann:165000:1000\n".to_owned();
        let plan = IdMapPlan::new(&HostFacts { subuid, ..user() });
        assert_eq!(
            lines(&plan.users),
            ["0 1000 1", "1 100000 65536", "65537 90000 10000", "75537 165536 464"]
        );
    }

    #[test]
    fn free_ids_are_nobodys() {
        assert_eq!(free_ids(65536, ["", ""]), Some(100_000..165_536));
        let (users, groups) = ("bob:165536:65536\nann:100000:65536\n", "eve:231072:10\neve:400000:1\n");
        assert_eq!(free_ids(65536, [users, groups]), Some(231_082..296_618));
        assert_eq!(free_ids(65536, ["bob:100000:4294867295\n", ""]), None);
    }

    #[test]
    fn without_helper_or_range_a_single_id_is_mapped() {
        let facts = HostFacts { newgidmap: None, ..user() };
        assert_eq!(IdMapPlan::new(&facts).users, MapPlan::Single(SingleReason::NoHelper));
        let facts = HostFacts { subgid: String::new(), ..user() };
        let plan = IdMapPlan::new(&facts);
        assert_eq!(plan.users, MapPlan::Single(SingleReason::NoRange));
        assert_eq!(plan.groups.last_id(), 0);
    }

    #[test]
    fn torn_lines_and_overflow_are_left_out() {
        let subuid = "ann\nann:\nann:5\nann:x:y\nann:4294967295:2\nann:10:0\n\nann:7:3\n".to_owned();
        let facts = HostFacts { subuid, ..user() };
        assert_eq!(lines(&IdMapPlan::new(&facts).users), ["0 1000 1", "1 7 3"]);
    }

    #[test]
    fn real_root_keeps_every_id() {
        let map = "         0          0 4294967295\n".to_owned();
        let facts = HostFacts { uid: 0, gid: 0, uid_map: map.clone(), gid_map: map, ..user() };
        let plan = IdMapPlan::new(&facts);
        assert_eq!(lines(&plan.users), ["0 0 4294967295"]);
        assert_eq!(plan.groups.last_id(), 4294967294);
    }

    #[test]
    fn root_of_a_container_keeps_the_ids_that_exist_there() {
        let map = "0 1000 1\n1 100000 65536\n".to_owned();
        let facts = HostFacts { uid: 0, gid: 0, uid_map: map.clone(), gid_map: map, ..user() };
        assert_eq!(lines(&IdMapPlan::new(&facts).users), ["0 0 1", "1 1 65536"]);
    }
}
