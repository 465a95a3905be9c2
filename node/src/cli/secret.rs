//! Passphrases: by prompt, file or descriptor; never by argument.

use std::path::Path;

use anyhow::{Context, bail};
use zeroize::Zeroizing;

/// A passphrase, wiped when dropped.
pub type Passphrase = Zeroizing<String>;

/// Longest passphrase read: what is larger is not a passphrase.
const MAX_BYTES: u64 = 4096;

/// Asks twice on the terminal.
pub fn ask_new() -> anyhow::Result<Passphrase> {
    let first = ask("Passphrase for the new key: ")?;
    let second = ask("The same once more: ")?;
    if *first != *second {
        bail!("the two passphrases differ; nothing was made");
    }
    Ok(first)
}

/// Asks on the terminal, without echo.
pub fn ask(prompt: &str) -> anyhow::Result<Passphrase> {
    let text = rpassword::prompt_password(prompt)
        .context("cannot ask for the passphrase; use --passphrase-fd or --passphrase-file")?;
    checked(Zeroizing::new(text))
}

/// Reads an open file descriptor to its end.
pub fn from_fd(fd: i32) -> anyhow::Result<Passphrase> {
    from_file(Path::new(&format!("/dev/fd/{fd}"))).with_context(|| format!("file descriptor {fd}"))
}

/// Reads the first line of a file.
pub fn from_file(path: &Path) -> anyhow::Result<Passphrase> {
    use std::io::Read;
    let mut text = Zeroizing::new(String::new());
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text))
        .with_context(|| format!("cannot read the passphrase from {}", path.display()))?;
    let line = text.lines().next().unwrap_or_default();
    checked(Zeroizing::new(line.to_owned()))
}

fn checked(text: Passphrase) -> anyhow::Result<Passphrase> {
    if text.is_empty() {
        bail!("the passphrase is empty");
    }
    Ok(text)
}
