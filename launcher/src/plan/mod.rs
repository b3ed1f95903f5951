//! What will be done, decided from the command line and facts about the host. Pure.

pub mod cgroup;
pub mod facts;
pub mod forwards;
pub mod idmap;
pub mod mounts;
pub mod namespaces;
pub mod net;
pub mod show;
pub mod surroundings;

use forwarder::spec::PortFile;

use self::cgroup::CgroupPlan;
use self::facts::HostFacts;
use self::forwards::ForwardPlan;
use self::idmap::IdMapPlan;
use self::mounts::MountPlan;
use self::namespaces::NamespacePlan;
use self::net::NetPlan;
use self::surroundings::Surroundings;
use crate::cli::RunArgs;
use crate::error::UsageError;

/// A launch, valid by construction.
#[derive(Debug)]
pub struct Plan {
    /// What the command finds around it.
    pub surroundings: Surroundings,
    /// What is made with the child.
    pub namespaces: NamespacePlan,
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
        let surroundings = Surroundings::new(args, facts)?;
        let namespaces = NamespacePlan::new(args, surroundings.kind, &net, facts)?;
        let forwards = ForwardPlan::new(&args.publish, published)?.with(&surroundings.published);
        let mounts = MountPlan::new(&net, &namespaces, &surroundings, args, facts);
        let warnings = net.overlaps(facts);
        let ids = IdMapPlan::new(facts);
        Ok(Plan {
            surroundings,
            namespaces,
            ids,
            net,
            forwards,
            mounts,
            cgroup: CgroupPlan::Untouched,
            warnings,
        })
    }
}
