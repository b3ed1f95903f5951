//! Real node components (containerd, runc, kubelet, flanneld..) and images for their pods, made by `tests/components/build.sh`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::skip::Skipped;

/// The directory of the components; the script's head says what is in it.
#[derive(Clone, Debug)]
pub struct Components {
    directory: PathBuf,
}

impl Components {
    /// Asks the script, which answers at once and builds nothing.
    ///
    /// # Errors
    /// The test is to be skipped where they have not been built: `.ci/setup.sh` does it, where Go is new enough, and warns otherwise.
    ///
    /// # Panics
    /// When the working directory is not that of this package.
    pub fn find() -> Result<Self, Skipped> {
        let output = Command::new("components/build.sh")
            .arg("--print-dir")
            .output()
            .expect("tests run in the directory of their package");
        if !output.status.success() {
            return Err(Skipped::because(String::from_utf8_lossy(&output.stderr).trim()));
        }
        let directory = String::from_utf8(output.stdout).expect("paths are UTF-8");
        Ok(Self { directory: directory.trim_end().into() })
    }

    /// The programs, for `PATH`.
    #[must_use]
    pub fn programs(&self) -> PathBuf {
        self.directory.join("bin")
    }

    /// containerd 2 and CRI-O, to be put before [`Self::programs`].
    #[must_use]
    pub fn second_programs(&self) -> PathBuf {
        self.directory.join("bin2")
    }

    /// The CNI plugins.
    #[must_use]
    pub fn cni_plugins(&self) -> PathBuf {
        self.directory.join("cni")
    }

    /// The OCI archive of the image `rootless-launch.test/NAME:1`: `pause` or `busybox`.
    #[must_use]
    pub fn image(&self, name: &str) -> PathBuf {
        self.directory.join("images").join(name).with_extension("tar")
    }

    /// All of it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}
