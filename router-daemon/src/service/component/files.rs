//! The files of a component: written beside their place, validated there, and renamed into it together.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::unistd::User;
use tokio::process::Command;

use super::{Component, Folder, Rendered};

/// Makes the folders, and puts the files in their place if the validator takes them. Otherwise nothing has changed.
pub(super) async fn write(component: &Component) -> Result<(), String> {
    make_folders(component)?;
    let next: Vec<_> = component.files.iter().map(|file| (file, beside(&file.path))).collect();
    let written = next.iter().try_for_each(|(file, beside)| put(file, beside));
    let good = match written {
        Ok(()) => validate(component).await,
        Err(why) => Err(why),
    };
    let placed = good.and_then(|()| {
        let rename = |(file, beside): &(&Rendered, PathBuf)| {
            fs::rename(beside, &file.path).map_err(|error| format!("cannot write {}: {error}", file.path.display()))
        };
        next.iter().try_for_each(rename)
    });
    if placed.is_err() {
        for (_, beside) in &next {
            fs::remove_file(beside).ok();
        }
    }
    placed
}

/// Puts files back that were in force: nobody is asked.
pub(super) fn put_back(files: &[Rendered]) -> Result<(), String> {
    files.iter().try_for_each(|file| {
        let beside = beside(&file.path);
        put(file, &beside)?;
        fs::rename(&beside, &file.path).map_err(|error| format!("cannot write {}: {error}", file.path.display()))
    })
}

/// What stands in the places of these files, if all of them are there.
pub(super) fn standing(files: &[Rendered]) -> Option<Vec<Rendered>> {
    let read = |file: &Rendered| Some(Rendered { text: fs::read_to_string(&file.path).ok()?, ..file.clone() });
    files.iter().map(read).collect()
}

fn make_folders(component: &Component) -> Result<(), String> {
    component.folders.iter().try_for_each(|folder| {
        make_folder(folder).map_err(|error| format!("cannot make the folder {}: {error}", folder.path.display()))
    })
}

fn make_folder(folder: &Folder) -> io::Result<()> {
    let Folder { path, mode, owner } = folder;
    fs::create_dir_all(path)?;
    let owner = match owner {
        None => None,
        Some(name) => match User::from_name(name)? {
            Some(user) => Some((user.uid.as_raw(), user.gid.as_raw())),
            None => return Err(io::Error::other(format!("there is no user {name}"))),
        },
    };
    let (user, group) = owner.unwrap_or((0, 0));
    chown(path, Some(user), Some(group)).or_else(|error| {
        // Whoever is not root has no other owner to give, and tests are not always root.
        if owner.is_none() { Ok(()) } else { Err(error) }
    })?;
    fs::set_permissions(path, Permissions::from_mode(*mode))
}

fn put(file: &Rendered, beside: &Path) -> Result<(), String> {
    let put = || -> io::Result<()> {
        // What a killed routerd left there may have other permissions.
        match fs::remove_file(beside) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        fs::write(beside, &file.text)?;
        fs::set_permissions(beside, Permissions::from_mode(file.mode))
    };
    put().map_err(|error| format!("cannot write {}: {error}", beside.display()))
}

/// In the same folder: a rename stays within a file system. The extension stays too, some programs look at it.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("next-{name}"))
}

async fn validate(component: &Component) -> Result<(), String> {
    let Some([program, arguments @ ..]) = component.validator.as_deref() else { return Ok(()) };
    let argument = |argument: &String| {
        let file = component.files.iter().find(|file| file.path == Path::new(argument));
        file.map_or_else(|| PathBuf::from(argument), |file| beside(&file.path))
    };
    let mut command = Command::new(program);
    command.args(arguments.iter().map(argument)).envs(&component.environment);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(VALIDATION, command.output()).await {
        Err(_) => return Err(format!("{program} did not say in {} s what it thinks", VALIDATION.as_secs())),
        Ok(Err(error)) => return Err(super::children::cannot_run(program, component.package, &error)),
        Ok(Ok(output)) => output,
    };
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stderr, output.stdout].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    let last: Vec<_> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = last.get(last.len().saturating_sub(TOLD)..).unwrap_or_default().join("; ");
    Err(format!("{program} refuses the files: {}", if last.is_empty() { output.status.to_string() } else { last }))
}

const VALIDATION: Duration = Duration::from_secs(20);
/// Lines of what a validator says.
const TOLD: usize = 3;
