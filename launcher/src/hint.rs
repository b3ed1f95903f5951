//! What the user can do about an error.

use crate::error::LaunchError;

/// One sentence, or nothing.
pub fn for_error(_error: &LaunchError) -> Option<String> {
    None
}
