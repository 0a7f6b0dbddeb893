//! What proves who we are, out of its file or from systemd. It goes from there to whoever needs it and nowhere else: no
//! message quotes a byte of it.

use std::path::{Path, PathBuf};

use config::model::Material;

use crate::api::certificate::contents;

/// Where it is.
pub(super) fn path(material: &Material) -> Result<PathBuf, String> {
    match (material, std::env::var_os("CREDENTIALS_DIRECTORY")) {
        (Material::File(path), _) => Ok(path.clone()),
        (Material::Credential(name), Some(folder)) => Ok(Path::new(&folder).join(name)),
        (Material::Credential(name), None) => Err(format!(
            "there is no credential `{name}`: the unit has no `LoadCredential={name}:/path`, or routerd runs without it"
        )),
    }
}

/// Text that others may know.
pub(super) fn public(material: &Material) -> Result<String, String> {
    let path = path(material)?;
    let (bytes, _) = contents(&path)?;
    String::from_utf8(bytes).map_err(|_bytes| format!("{} is no text", path.display()))
}

/// Text that nobody else may read.
pub(super) fn secret(material: &Material) -> Result<String, String> {
    let path = path(material)?;
    let (bytes, mode) = contents(&path)?;
    if mode & 0o777 & !0o640 != 0 {
        return Err(format!("{} may be read by others: chmod 600 {}", path.display(), path.display()));
    }
    String::from_utf8(bytes).map_err(|_bytes| format!("{} is no text", path.display()))
}

/// The first line of a file that holds one secret.
pub(super) fn word(material: &Material) -> Result<String, String> {
    let text = secret(material)?;
    let word = text.lines().next().unwrap_or_default().trim();
    if word.is_empty() {
        return Err(format!("{} is empty", path(material)?.display()));
    }
    Ok(word.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_secret_that_others_may_read_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("psk");
        fs::write(&file, "hunter2\nmore\n").unwrap();
        let material = Material::File(file.clone());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(word(&material).unwrap_err().contains("may be read by others"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(word(&material).as_deref(), Ok("hunter2"));
        fs::write(&file, "\n").unwrap();
        assert!(word(&material).unwrap_err().ends_with("is empty"));
    }
}
