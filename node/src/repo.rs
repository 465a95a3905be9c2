//! The repo: one directory that is one node.
//!
//! `config.toml`, `key`, `api-token`, `network.toml`, `lock`, `api` (where a running daemon listens), and the
//! databases `state/` and `blocks/`. Whoever uses the databases holds the lock; a second process is told who
//! has it instead of waiting or breaking in.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::config::{Config, ConfigError};
use crate::network::{NetworkError, NetworkFile};

/// Why a repo could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum RepoError {
    /// `init` where a repo already is.
    #[error("{0} already is a btfs repo; nothing was changed. Choose another place with BTFS_PATH or --repo")]
    Exists(PathBuf),
    /// No repo where one was expected.
    #[error(
        "there is no btfs repo at {0}. Make one with `btfs init`, or name its place with BTFS_PATH or --repo"
    )]
    Missing(PathBuf),
    /// A backup that lacks something.
    #[error("{0} is not there or no database: this is no backup by `btfs repo backup`; nothing was changed")]
    NoBackup(PathBuf),
    /// What a restore would write over.
    #[error(
        "{0} is in the way, from a restore that broke off or of something else; nothing was changed. Remove it, or choose another place"
    )]
    InTheWay(PathBuf),
    /// A repo of go-btfs.
    #[error(
        "{0} is a repo of go-btfs, which this program does not read; nothing was changed. Set BTFS_PATH to another place"
    )]
    GoBtfs(PathBuf),
    /// Another process uses it.
    #[error(
        "the repo {path} is in use by another btfs process{holder}; nothing was changed. Stop it with `btfs shutdown`, or talk to it through its API"
    )]
    InUse {
        /// Which repo.
        path: PathBuf,
        /// Its process, if it said so.
        holder: String,
    },
    /// A file of the repo could not be used.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A secret that others on the machine could read.
    #[error("{path} can be read by others (mode {mode:o}); run: chmod 600 {path}")]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The network file.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> RepoError {
    let path = path.to_owned();
    move |source| RepoError::Io { what, path, source }
}

/// A repo directory. Cheap; opening the databases needs its [`RepoLock`].
#[derive(Clone, Debug)]
pub struct Repo {
    root: PathBuf,
}

/// Held while the databases are open; the kernel gives it up when the process ends, however it ends.
#[derive(Debug)]
pub struct RepoLock {
    _file: File,
    read_only: bool,
}

impl RepoLock {
    /// Whether the repo's disk can only be read.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }
}

impl Repo {
    /// `$BTFS_PATH`, or `~/.btfs`.
    pub fn default_path() -> PathBuf {
        std::env::var_os("BTFS_PATH")
            .map(PathBuf::from)
            .unwrap_or_else(|| std::env::home_dir().unwrap_or_else(|| PathBuf::from(".")).join(".btfs"))
    }

    /// Makes a new repo: everything but the key, which its caller writes with [`Repo::key_path`]. The
    /// configuration is written last: what has it is a repo.
    pub fn create(root: &Path, network: Option<&NetworkFile>) -> Result<Self, RepoError> {
        let repo = Self { root: root.to_owned() };
        repo.refuse_foreign()?;
        if repo.config_path().exists() {
            return Err(RepoError::Exists(root.to_owned()));
        }
        fs::create_dir_all(root).map_err(io("cannot create", root))?;
        fs::set_permissions(root, fs::Permissions::from_mode(0o700))
            .map_err(io("cannot set the mode of", root))?;
        let mut token = [0u8; 32];
        getrandom::fill(&mut token).map_err(|error| RepoError::Io {
            what: "cannot draw the token for",
            path: repo.token_path(),
            source: std::io::Error::other(error.to_string()),
        })?;
        write_secret(&repo.token_path(), hex::encode(token).as_bytes())?;
        if let Some(network) = network {
            repo.write_network(network)?;
        }
        Ok(repo)
    }

    /// The last step of making a repo.
    pub fn finish_create(&self, config: &str) -> Result<(), RepoError> {
        Config::parse(config)?;
        write_atomic(&self.config_path(), config.as_bytes(), 0o644)
    }

    /// Finds the repo at `root`.
    pub fn open(root: &Path) -> Result<Self, RepoError> {
        let repo = Self { root: root.to_owned() };
        repo.refuse_foreign()?;
        if !repo.config_path().is_file() {
            return Err(RepoError::Missing(root.to_owned()));
        }
        Ok(repo)
    }

    fn refuse_foreign(&self) -> Result<(), RepoError> {
        // go-btfs keeps a JSON `config` and a `datastore_spec`, as Kubo does.
        let foreign = self.root.join("datastore_spec").exists() || self.root.join("config").is_file();
        if foreign { Err(RepoError::GoBtfs(self.root.clone())) } else { Ok(()) }
    }

    /// Takes the repo for this process, or says who has it.
    ///
    /// On a disk that can only be read it is shared with others that read.
    pub fn lock(&self) -> Result<RepoLock, RepoError> {
        let path = self.root.join("lock");
        let opened = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let (mut file, read_only) = match opened {
            Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {
                (File::open(&path).map_err(io("cannot open", &path))?, true)
            }
            opened => (opened.map_err(io("cannot open", &path))?, false),
        };
        match if read_only { file.try_lock_shared() } else { file.try_lock() } {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Only for the message: an unreadable holder changes nothing.
                let _ = file.read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => String::new(),
                    pid => format!(" (process {pid})"),
                };
                return Err(RepoError::InUse { path: self.root.clone(), holder });
            }
            Err(fs::TryLockError::Error(source)) => return Err(io("cannot lock", &path)(source)),
        }
        if !read_only {
            file.set_len(0)
                .and_then(|()| write!(file, "{}", std::process::id()))
                .map_err(io("cannot write", &path))?;
        }
        Ok(RepoLock { _file: file, read_only })
    }

    /// Waits until the process that has the repo has ended.
    pub fn wait_until_free(&self, at_most: std::time::Duration) -> Result<(), RepoError> {
        let deadline = std::time::Instant::now() + at_most;
        loop {
            match self.lock() {
                Err(RepoError::InUse { .. }) if std::time::Instant::now() < deadline => {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                other => return other.map(drop),
            }
        }
    }

    /// The validated configuration.
    pub fn config(&self) -> Result<Config, RepoError> {
        let path = self.config_path();
        let text = fs::read_to_string(&path).map_err(io("cannot read", &path))?;
        Ok(Config::parse(&text)?)
    }

    /// Replaces the configuration, if `text` is a valid one.
    pub fn write_config(&self, text: &str) -> Result<(), RepoError> {
        Config::parse(text)?;
        write_atomic(&self.config_path(), text.as_bytes(), 0o644)
    }

    /// The network this node belongs to; without a file, the public one.
    pub fn network(&self) -> Result<NetworkFile, RepoError> {
        let path = self.root.join("network.toml");
        if path.exists() { Ok(NetworkFile::load(&path)?) } else { Ok(NetworkFile::default()) }
    }

    /// Makes the node a member of `network` from its next start on.
    pub fn write_network(&self, network: &NetworkFile) -> Result<(), RepoError> {
        write_atomic(&self.root.join("network.toml"), network.to_toml().as_bytes(), 0o644)
    }

    /// The bearer token of the API.
    pub fn token(&self) -> Result<String, RepoError> {
        let path = self.token_path();
        let mode = fs::metadata(&path).map_err(io("cannot read", &path))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(RepoError::Exposed { path, mode });
        }
        let text = fs::read_to_string(&path).map_err(io("cannot read", &path))?;
        Ok(text.trim().to_owned())
    }

    /// Copies what makes the node what it is beside its databases: network, key, and, last, the settings, so that a
    /// copy that broke off is not taken for a whole one. Not the token: it is for those who use this very place.
    pub fn copy_files_to(&self, target: &Path) -> Result<(), RepoError> {
        fs::set_permissions(target, fs::Permissions::from_mode(0o700))
            .map_err(io("cannot set the mode of", target))?;
        for (name, mode) in COPIED {
            let from = self.root.join(name);
            match fs::read(&from) {
                Ok(bytes) => write_atomic(&target.join(name), &bytes, mode)?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(io("cannot read", &from)(error)),
            }
        }
        Ok(())
    }

    /// Says where the daemon's API listens; the CLI reads it.
    pub fn write_api_address(&self, address: std::net::SocketAddr) -> Result<(), RepoError> {
        let mut reached = address;
        if address.ip().is_unspecified() {
            reached.set_ip(if address.is_ipv4() {
                Ipv4Addr::LOCALHOST.into()
            } else {
                Ipv6Addr::LOCALHOST.into()
            });
        }
        write_atomic(&self.api_path(), reached.to_string().as_bytes(), 0o644)
    }

    /// Where a daemon said it listens. It may be gone since: the lock tells.
    pub fn api_address(&self) -> Option<std::net::SocketAddr> {
        fs::read_to_string(self.api_path()).ok()?.trim().parse().ok()
    }

    /// Forgets the daemon's address.
    pub fn clear_api_address(&self) {
        // A stale file is harmless: readers also try the lock.
        let _ = fs::remove_file(self.api_path());
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The node's secret key.
    pub fn key_path(&self) -> PathBuf {
        self.root.join("key")
    }

    fn config_path(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// The text file of settings, for editing.
    pub fn config_file(&self) -> PathBuf {
        self.config_path()
    }

    fn token_path(&self) -> PathBuf {
        self.root.join("api-token")
    }

    fn api_path(&self) -> PathBuf {
        self.root.join("api")
    }
}

/// Files of a backup with their modes, in the order in which they are written.
const COPIED: [(&str, u32); 3] = [("network.toml", 0o644), ("key", 0o600), ("config.toml", 0o644)];
/// Directories that every backup has.
const DATABASES: [&str; 2] = ["state", "blocks"];
/// What the names of its further data directories begin with.
const MORE_BLOCKS: &str = "blocks-";

/// Makes a repo at `root`, where none is, from a backup. The configuration comes last: without it nothing is a repo.
pub fn restore(backup: &Path, root: &Path) -> Result<(), RepoError> {
    let from = Repo::open(backup)?;
    for database in DATABASES {
        let path = backup.join(database);
        if !path.join("CURRENT").is_file() {
            return Err(RepoError::NoBackup(path));
        }
    }
    let mut databases: Vec<OsString> = DATABASES.iter().map(OsString::from).collect();
    for entry in fs::read_dir(backup).map_err(io("cannot read", backup))? {
        let name = entry.map_err(io("cannot read", backup))?.file_name();
        databases.extend(Some(name).filter(|name| name.to_string_lossy().starts_with(MORE_BLOCKS)));
    }
    if let Some(database) = databases.iter().map(|name| root.join(name)).find(|path| path.exists()) {
        return Err(RepoError::InTheWay(database));
    }
    let repo = Repo::create(root, None)?;
    for database in databases {
        copy_directory(&backup.join(&database), &root.join(&database))?;
    }
    from.copy_files_to(repo.root())
}

/// Copies the files of a directory, none of which is a directory, and syncs them.
fn copy_directory(from: &Path, to: &Path) -> Result<(), RepoError> {
    fs::create_dir_all(to).map_err(io("cannot create", to))?;
    for entry in fs::read_dir(from).map_err(io("cannot read", from))? {
        let path = entry.map_err(io("cannot read", from))?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        fs::copy(&path, &target).map_err(io("cannot copy", &path))?;
        File::open(&target).and_then(|file| file.sync_all()).map_err(io("cannot sync", &target))?;
    }
    sync_parent(&to.join("CURRENT"))
}

fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), RepoError> {
    write_atomic(path, bytes, 0o600)
}

/// Writes a file so that after a crash the old or the new text is there, whole.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), RepoError> {
    let temporary = write_temporary(path, bytes, mode)?;
    fs::rename(&temporary, path).map_err(io("cannot put in place", path))?;
    sync_parent(path)
}

/// Writes a file of the user's: whole or not at all, and never over one that is there.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<(), RepoError> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let temporary = write_temporary(path, bytes, 0o644)?;
    if let Err(error) = renameat_with(CWD, &temporary, CWD, path, RenameFlags::NOREPLACE) {
        // What could not be put in place is of no use under its other name.
        let _ = fs::remove_file(&temporary);
        return Err(io("cannot put in place", path)(error.into()));
    }
    sync_parent(path)
}

/// Writes and syncs a file beside `path` under a name that nobody has.
fn write_temporary(path: &Path, bytes: &[u8], mode: u32) -> Result<PathBuf, RepoError> {
    static COUNTER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = COUNTER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}-{number}.tmp", std::process::id()));
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(io("cannot create", &temporary))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io("cannot write", &temporary))?;
    Ok(temporary)
}

fn sync_parent(path: &Path) -> Result<(), RepoError> {
    if let Some(parent) = path.parent() {
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(io("cannot sync", parent))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(dir: &Path) -> Repo {
        let repo = Repo::create(dir, None).unwrap();
        repo.finish_create(crate::config::TEMPLATE).unwrap();
        repo
    }

    #[test]
    fn a_repo_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let repo = fresh(dir.path());
        assert!(matches!(Repo::create(dir.path(), None), Err(RepoError::Exists(_))));
        assert_eq!(repo.token().unwrap().len(), 64);
        assert_eq!(repo.network().unwrap(), NetworkFile::default());
    }

    #[test]
    fn a_second_user_is_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let repo = fresh(dir.path());
        let held = repo.lock().unwrap();
        let error = repo.lock().unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(held);
        repo.lock().unwrap();
    }

    #[test]
    fn a_foreign_repo_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config"), "{}").unwrap();
        assert!(matches!(Repo::create(dir.path(), None), Err(RepoError::GoBtfs(_))));
        assert!(matches!(Repo::open(dir.path()), Err(RepoError::GoBtfs(_))));
    }

    #[test]
    fn an_exposed_token_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let repo = fresh(dir.path());
        fs::set_permissions(repo.token_path(), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(repo.token(), Err(RepoError::Exposed { .. })));
    }
}
