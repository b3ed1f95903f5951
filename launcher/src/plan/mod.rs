//! What will be done, decided from the command line and facts about the host. Pure.

pub mod cgroup;
pub mod facts;
pub mod forwards;
pub mod idmap;
pub mod mounts;
pub mod net;

use forwarder::spec::PortFile;

use self::cgroup::CgroupPlan;
use self::facts::HostFacts;
use self::forwards::ForwardPlan;
use self::idmap::IdMapPlan;
use self::mounts::MountPlan;
use self::net::NetPlan;
use crate::cli::RunArgs;
use crate::error::UsageError;

/// A launch, valid by construction.
#[derive(Debug)]
pub struct Plan {
    /// User and group ids.
    pub ids: IdMapPlan,
    /// The child's network.
    pub net: NetPlan,
    /// What is published from the start.
    pub forwards: ForwardPlan,
    /// The child's files.
    pub mounts: MountPlan,
    /// The cgroup of all of it.
    pub cgroup: CgroupPlan,
    /// What the user should know before it starts.
    pub warnings: Vec<String>,
}

impl Plan {
    /// Plans a launch. `policy` is the text of all egress rules, one per line, `published` the contents of each
    /// `--publish-file`.
    ///
    /// # Errors
    /// Settings that cannot work.
    pub fn new(
        args: &RunArgs,
        policy: &str,
        published: &[PortFile],
        facts: &HostFacts,
    ) -> Result<Plan, UsageError> {
        let net = NetPlan::new(args, policy, facts)?;
        let forwards = ForwardPlan::new(&args.publish, published)?;
        let mounts = MountPlan::new(&net, args, facts);
        let warnings = net.overlaps(facts);
        Ok(Plan {
            ids: IdMapPlan::new(facts),
            net,
            forwards,
            mounts,
            cgroup: CgroupPlan::Untouched,
            warnings,
        })
    }
}
