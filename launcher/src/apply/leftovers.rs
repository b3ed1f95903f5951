//! What the last life of a node has left half done.

use std::fs;
use std::io;
use std::path::Path;

use log::{info, warn};

use crate::components::layout::KUBELET_CERTIFICATES;

/// Removes kubelet's own certificate without its key, or the key without the certificate. It writes one after the other, never starts
/// again if it was killed in between, and makes new ones where there are none.
pub fn mend(data: &Path) {
    let directory = data.join(KUBELET_CERTIFICATES.trim_start_matches('/'));
    let pair = ["kubelet.crt", "kubelet.key"].map(|name| directory.join(name));
    if pair.iter().all(|path| path.metadata().is_ok_and(|file| file.len() > 0)) {
        return;
    }
    for path in pair {
        match fs::remove_file(&path) {
            Ok(()) => info!("{path:?} is removed: kubelet had not written its pair when it was killed"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => warn!("{path:?} lacks its pair and cannot be removed, kubelet may fail: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_pair_goes_and_a_whole_one_stays() {
        let data = std::env::temp_dir().join(format!("rootless-launch-leftovers-{}", std::process::id()));
        let directory = data.join("var/lib/kubelet/pki");
        fs::create_dir_all(&directory).unwrap();
        let [certificate, key] = ["kubelet.crt", "kubelet.key"].map(|name| directory.join(name));
        mend(&data);
        fs::write(&certificate, "c").unwrap();
        fs::write(&key, "k").unwrap();
        mend(&data);
        assert!(certificate.exists() && key.exists());
        fs::write(&key, "").unwrap();
        mend(&data);
        assert!(!certificate.exists() && !key.exists());
        fs::write(&certificate, "c").unwrap();
        mend(&data);
        assert!(!certificate.exists());
        fs::remove_dir_all(&data).unwrap();
    }
}
