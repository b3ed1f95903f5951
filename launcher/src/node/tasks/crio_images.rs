//! Brings images from OCI archives to where CRI-O keeps them, which has no import of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use thiserror::Error;

use super::TaskError;
use super::images::files;
use super::programs::output;

/// In an archive: which images are in it (OCI image specification, image-layout.md).
const INDEX: &str = "index.json";

/// Copies the images of each archive, and of those in each directory.
///
/// # Errors
/// One cannot be copied; those before it are.
pub(super) fn copy(skopeo: &Path, storage: &str, archives: &[PathBuf]) -> Result<(), TaskError> {
    for archive in files(archives)? {
        let mut tar = Command::new("tar");
        // The name may begin with "./".
        tar.args(["--extract", "--to-stdout", "--occurrence=1", "--no-anchored", "--file"]);
        let index = output(tar.arg(&archive).arg(INDEX), || format!("reading {}", archive.display()))?;
        let images =
            images(&index).map_err(|source| TaskError::Archive { archive: archive.clone(), source })?;
        for image in images {
            let mut source = format!("oci-archive:{}", archive.display());
            source.extend(image.reference.iter().flat_map(|reference| [":", reference]));
            let mut command = Command::new(skopeo);
            command.args(["copy", "--quiet"]).arg(source).arg(format!("{storage}{}", image.name));
            output(&mut command, || format!("copying {} of {}", image.name, archive.display()))?;
            log::info!("copied {}", image.name);
        }
    }
    Ok(())
}

/// What is the matter with an archive.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// index.json is not one.
    #[error("its {INDEX} is not an image index")]
    Syntax(#[from] serde_json::Error),
    /// There is nothing in it.
    #[error("there is no image in it")]
    Empty,
    /// It was made without the names of its images.
    #[error(
        "it does not say what its images are called: neither by the annotation {IMAGE_NAME} nor by {REF_NAME} with a registry's name"
    )]
    Nameless,
    /// Only one could be copied.
    #[error("it has several images, and not all have the annotation {REF_NAME} that tells them apart")]
    Alike,
}

/// An image in an archive.
#[derive(Debug, PartialEq, Eq)]
struct Image {
    /// What pods call it.
    name: String,
    /// What the archive calls it, if it has several.
    reference: Option<String>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    #[serde(default)]
    annotations: Annotations,
}

#[derive(Default, Deserialize)]
struct Annotations {
    #[serde(rename = "io.containerd.image.name")]
    image_name: Option<String>,
    #[serde(rename = "org.opencontainers.image.ref.name")]
    ref_name: Option<String>,
}

/// The whole name; containerd's tools write it.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// Often no more than a tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

fn images(index: &str) -> Result<Vec<Image>, ArchiveError> {
    let Index { manifests } = serde_json::from_str(index)?;
    let several = match manifests.len() {
        0 => return Err(ArchiveError::Empty),
        count => count > 1,
    };
    let image = |Descriptor { annotations }| {
        let Annotations { image_name, ref_name } = annotations;
        let whole = ref_name.clone().filter(|name| name.contains('/'));
        let name = image_name.or(whole).ok_or(ArchiveError::Nameless)?;
        let reference = match several {
            true => Some(ref_name.ok_or(ArchiveError::Alike)?),
            false => None,
        };
        Ok(Image { name, reference })
    };
    manifests.into_iter().map(image).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(annotations: &[&str]) -> String {
        let manifests =
            annotations.iter().map(|all| format!(r#"{{"digest": "sha256:0", "annotations": {{{all}}}}}"#));
        format!(r#"{{"schemaVersion": 2, "manifests": [{}]}}"#, manifests.collect::<Vec<_>>().join(","))
    }

    fn named(annotations: &[&str]) -> Vec<(String, Option<String>)> {
        let images = images(&index(annotations)).unwrap();
        images.into_iter().map(|image| (image.name, image.reference)).collect()
    }

    const BOTH: &str =
        r#""io.containerd.image.name": "a.test/a:1", "org.opencontainers.image.ref.name": "1""#;
    const WHOLE: &str = r#""org.opencontainers.image.ref.name": "a.test/b:2""#;
    const TAG: &str = r#""org.opencontainers.image.ref.name": "1""#;

    #[test]
    fn one_image_needs_no_reference() {
        assert_eq!(named(&[BOTH]), [("a.test/a:1".to_owned(), None)]);
        assert_eq!(named(&[WHOLE]), [("a.test/b:2".to_owned(), None)]);
    }

    #[test]
    fn several_are_told_apart() {
        let first = ("a.test/a:1".to_owned(), Some("1".to_owned()));
        let second = ("a.test/b:2".to_owned(), Some("a.test/b:2".to_owned()));
        assert_eq!(named(&[BOTH, WHOLE]), [first, second]);
    }

    #[test]
    fn archives_that_will_not_do_are_refused() {
        let refused = |text: &str| images(text).unwrap_err();
        assert!(matches!(refused(&index(&[TAG])), ArchiveError::Nameless));
        assert!(matches!(refused(r#"{"manifests": [{}]}"#), ArchiveError::Nameless));
        assert!(matches!(refused(&index(&[])), ArchiveError::Empty));
        assert!(matches!(refused("{}"), ArchiveError::Syntax(_)));
        let nameless = r#""io.containerd.image.name": "a.test/a:1""#;
        assert!(matches!(refused(&index(&[BOTH, nameless])), ArchiveError::Alike));
    }
}
