//! Secrets that are given: passphrases by prompt, file or descriptor, and the keys in links by file. Arguments are read by
//! every user of a machine: no passphrase is taken from there, and a link need not be.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, bail};
use btfs_storage::sealed::Link;
use zeroize::Zeroizing;

/// A passphrase, wiped when dropped.
pub type Passphrase = Zeroizing<String>;

/// Longest passphrase read: what is larger is not a passphrase.
const MAX_BYTES: u64 = 4096;
/// Longest link read: its path may have many names.
const MAX_LINK: u64 = 64 << 10;

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
    let mut text = Zeroizing::new(String::new());
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text))
        .with_context(|| format!("cannot read the passphrase from {}", path.display()))?;
    let line = text.lines().next().unwrap_or_default();
    checked(Zeroizing::new(line.to_owned()))
}

/// Reads a link with its key from the first line of a file, or of standard input if that is `-`.
pub fn link(path: &Path) -> anyhow::Result<Link> {
    let mut line = Zeroizing::new(String::new());
    let (read, name) = match path.as_os_str() == "-" {
        true => (first_line(std::io::stdin().lock(), &mut line), "standard input".to_owned()),
        false => {
            let file = std::fs::File::open(path).map(BufReader::new);
            (file.and_then(|file| first_line(file, &mut line)), path.display().to_string())
        }
    };
    read.with_context(|| format!("cannot read a link from {name}"))?;
    line.parse().with_context(|| format!("the first line of {name} is no link to a sealed file"))
}

fn first_line(input: impl BufRead, line: &mut String) -> std::io::Result<()> {
    input.take(MAX_LINK).read_line(line).map(drop)
}

fn checked(text: Passphrase) -> anyhow::Result<Passphrase> {
    if text.is_empty() {
        bail!("the passphrase is empty");
    }
    Ok(text)
}
