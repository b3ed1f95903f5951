//! Landlock (landlock(7)): what is out of sight is out of reach as well, for what has been overlooked, and where
//! there can be no empty root.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, LandlockStatus, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope, path_beneath_rules,
};
use thiserror::Error;

/// Why Landlock restricts nothing.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LandlockError {
    /// The kernel is older than 5.13, or was started without it.
    #[error("the kernel has no Landlock")]
    Missing,
    /// A system call failed.
    #[error("Landlock failed")]
    Ruleset(#[from] RulesetError),
}

/// The latest that this program knows; an older kernel restricts what it can.
const LATEST: ABI = ABI::V9;

/// Allows to read files and directories below `readable`, and no other use of a file system: nothing is written,
/// made or executed, no device controlled, no socket of others connected to, no process outside signalled.
/// Network addresses are not restricted: the engine connects wherever the child wants.
///
/// Says which version of its interface is in use.
pub(super) fn restrict<P: AsRef<Path>>(readable: &[P]) -> Result<u32, LandlockError> {
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LATEST))?
        .scope(Scope::from_all(LATEST))?
        .create()?
        .add_rules(path_beneath_rules(readable, AccessFs::ReadFile | AccessFs::ReadDir))?
        .restrict_self()?;
    match status.landlock {
        LandlockStatus::Available { effective_abi, .. } if status.ruleset != RulesetStatus::NotEnforced => {
            Ok(effective_abi as u32)
        }
        _ => Err(LandlockError::Missing),
    }
}
