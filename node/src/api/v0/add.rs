//! `add`: files, directories and symlinks as the parts of a form, as Kubo's clients send them.
//!
//! Source: Kubo's RPC reference, `/api/v0/add`, and what Kubo 0.42 does with it. A part's content type tells a directory
//! (`application/x-directory`) or a symlink (`application/symlink`) from a file; its `filename` is the path, escaped as in
//! a query; its `name` carries mode and time of modification as in `file?mode=0644&mtime=1`.
//!
//! With `progress=true` the answer begins while the request is still read. A failure after that is a line of its own, and
//! the answer breaks off.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::multipart::Field;
use axum::extract::{Multipart, RawQuery, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use btfs_storage::Bytes;
use futures::StreamExt;
use percent_encoding::percent_decode_str;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::api::call::{Answered, ApiError, ErrorBody};
use crate::api::query::Arguments;
use crate::calls::add::AddOptions;
use crate::calls::upload::{Entry, EntryKind, OnProgress, Told, Upload};
use crate::node::Node;

/// Lines of progress that wait for a slow reader; more are dropped.
const WAITING: usize = 16;

/// What is asked for beside the options of any `add`.
struct Asked {
    options: AddOptions,
    progress: bool,
    /// Only directories are told.
    silent: bool,
    empty_directories: bool,
}

impl Asked {
    fn parse(query: Option<String>) -> Answered<Asked> {
        let mut options = AddOptions::from_query(query.as_deref().unwrap_or_default())?;
        if options.cid_version == Some(0) {
            options.profile.get_or_insert_with(|| "unixfs-v0-2015".into());
        }
        options.mode = options.mode.as_deref().map(go_number).transpose()?.map(|mode| format!("{mode:o}"));
        let arguments = Arguments::parse(RawQuery(query));
        Ok(Asked {
            options,
            progress: arguments.flag("progress", false)?,
            silent: arguments.flag("silent", false)?,
            empty_directories: arguments.flag("empty-dirs", true)?,
        })
    }
}

/// The handler.
pub async fn add(
    State(node): State<Arc<Node>>,
    RawQuery(query): RawQuery,
    parts: Multipart,
) -> Result<Response, ApiError> {
    let asked = Asked::parse(query)?;
    let (steps, received) = mpsc::channel(WAITING);
    let (progress, silent) = (asked.progress, asked.silent);
    let on_progress: OnProgress = match progress {
        // A reader that does not keep up sees fewer of them.
        true => Box::new(move |name, bytes| drop(steps.try_send(step(name, bytes)))),
        false => Box::new(|_, _| {}),
    };
    let upload = Upload::begin(&node, asked.options, asked.empty_directories, on_progress)?;
    let work = AbortOnDropHandle::new(tokio::spawn(feed(upload, parts)));
    if progress { streamed(work, received, silent).await } else { Ok(answer(lines(&work.await??, silent))) }
}

/// Gives the parts to the upload, one after the other, and finishes it.
async fn feed(mut upload: Upload, mut parts: Multipart) -> Answered<Vec<Told>> {
    'parts: while let Some(mut part) = parts.next_field().await? {
        if !upload.entry(entry(&part)?).await {
            break;
        }
        while let Some(piece) = part.chunk().await? {
            if !upload.content(piece).await {
                break 'parts;
            }
        }
        if !upload.entry_end().await {
            break;
        }
    }
    upload.finish().await
}

/// The answer as progress comes. It begins with the first line, so that what fails before has a status that says so.
async fn streamed(
    work: AbortOnDropHandle<Answered<Vec<Told>>>,
    mut steps: mpsc::Receiver<Bytes>,
    silent: bool,
) -> Result<Response, ApiError> {
    let Some(first) = steps.recv().await else { return Ok(answer(lines(&work.await??, silent))) };
    let rest = futures::stream::unfold(steps, |mut steps| async move { Some((steps.recv().await?, steps)) });
    let end = futures::stream::once(async move {
        let failed = match work.await {
            Ok(Ok(told)) => return vec![Ok(lines(&told, silent))],
            Ok(Err(error)) => error.message,
            Err(error) => error.to_string(),
        };
        let told = ErrorBody { message: failed.clone(), code: 0, kind: "error".into() };
        let line = serde_json::to_vec(&told).unwrap_or_default();
        vec![Ok(Bytes::from([&line[..], b"\n"].concat())), Err(std::io::Error::other(failed))]
    });
    // Between the line and the break the server gets the time to send the line.
    let end = end.flat_map(|pieces| {
        futures::stream::iter(pieces).then(|piece: std::io::Result<Bytes>| async {
            if piece.is_err() {
                tokio::task::yield_now().await;
            }
            piece
        })
    });
    let body = futures::stream::once(async move { first }).chain(rest).map(Ok).chain(end);
    Ok(answer(Body::from_stream(body)))
}

fn answer(body: impl Into<Body>) -> Response {
    let headers = [(header::CONTENT_TYPE.as_str(), "application/json"), ("x-chunked-output", "1")];
    (headers, body.into()).into_response()
}

fn step(name: &str, bytes: u64) -> Bytes {
    format!("{}\n", json!({ "Name": name, "Bytes": bytes })).into()
}

/// A line for each of what was added.
fn lines(told: &[Told], silent: bool) -> Bytes {
    let mut lines = String::new();
    for told in told.iter().filter(|told| !silent || told.is_directory) {
        let line =
            json!({ "Name": told.name, "Hash": told.cid.to_string(), "Size": told.dag_size.to_string() });
        lines.push_str(&line.to_string());
        lines.push('\n');
    }
    lines.into()
}

/// What the head of a part says.
fn entry(part: &Field<'_>) -> Answered<Entry> {
    // A browser gives the type of a file some parameters now and then.
    let kind = match part.content_type().map(|kind| kind.split(';').next().unwrap_or(kind).trim()) {
        Some("application/x-directory" | "multipart/form-data") => EntryKind::Directory,
        Some("application/symlink") => EntryKind::Symlink,
        _ => EntryKind::File,
    };
    let path = path(part.file_name().unwrap_or_default())?;
    let (mut mode, mut seconds, mut nanoseconds) = (None, None, 0);
    let query = part.name().and_then(|name| name.split_once('?')).map_or("", |(_, query)| query);
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        let wrong =
            || ApiError::bad(format!("{name}={value} of {} cannot be; nothing was added", path.join("/")));
        match &*name {
            "mode" => mode = Some(u32::from_str_radix(&value, 8).map(unix_mode).map_err(|_| wrong())?),
            "mtime" => seconds = Some(value.parse().map_err(|_| wrong())?),
            "mtime-nsecs" => {
                nanoseconds = value.parse().ok().filter(|n| *n < 1_000_000_000).ok_or_else(wrong)?;
            }
            _ => {}
        }
    }
    Ok(Entry { path, kind, mode, mtime: seconds.map(|seconds| (seconds, nanoseconds)) })
}

/// The components of a path as it is sent: escaped as in a query, or plain if it cannot have been.
fn path(sent: &str) -> Answered<Vec<String>> {
    let is_escape = |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    let path = if sent.split('%').skip(1).all(is_escape) {
        let spaced = sent.replace('+', " ");
        let decoded = percent_decode_str(&spaced).decode_utf8().map(|path| path.into_owned());
        decoded
            .map_err(|_| ApiError::bad(format!("the name {sent} is not UTF-8, which UnixFS cannot hold")))?
    } else {
        sent.to_owned()
    };
    let mut components = Vec::new();
    for name in path.split('/').filter(|name| !matches!(*name, "" | ".")) {
        if name == ".." {
            return Err(ApiError::bad(format!("{path} leads out of what is added; nothing was added")));
        }
        components.push(name.to_owned());
    }
    Ok(components)
}

/// A number as Kubo reads those of its options: octal or hexadecimal with a prefix, decimal without.
fn go_number(text: &str) -> Answered<u32> {
    let digits = text.trim_start_matches('0');
    let parsed = match digits.split_at_checked(1) {
        _ if !text.starts_with('0') => text.parse(),
        Some(("x" | "X", digits)) => u32::from_str_radix(digits, 16),
        Some(("o" | "O", digits)) => u32::from_str_radix(digits, 8),
        Some(_) => u32::from_str_radix(digits, 8),
        None => Ok(0),
    };
    parsed.map_err(|_| ApiError::bad(format!("mode={text} is no number; 0644 and 420 are")))
}

/// Permissions as Unix has them. Go's clients send its own numbers, where the three special bits lie elsewhere.
fn unix_mode(sent: u32) -> u32 {
    let set_ids = (sent & 0xc0_0000) >> 12;
    let sticky = (sent & 0x10_0000) >> 11;
    (sent & 0o7777) | set_ids | sticky
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unescaped() {
        for (sent, components) in [
            ("a", &["a"][..]),
            ("", &[]),
            ("dir%2Ffile+name.txt", &["dir", "file name.txt"]),
            ("/dir//./x%2By/", &["dir", "x+y"]),
            ("1+2=100%", &["1+2=100%"]),
            ("%C3%A9t%C3%A9", &["été"]),
        ] {
            assert_eq!(path(sent).expect(sent), components, "{sent}");
        }
        assert!(path("%ff").is_err());
        assert!(path("a/../b").is_err());
    }

    #[test]
    fn modes_are_those_of_unix() {
        for (text, number) in [("0644", 0o644), ("420", 0o644), ("0o644", 0o644), ("0x1a4", 0o644), ("0", 0)]
        {
            assert_eq!(go_number(text).expect(text), number, "{text}");
        }
        for wrong in ["", "08", "-1", "0xg", "rw"] {
            assert!(go_number(wrong).is_err(), "{wrong}");
        }
        assert_eq!(unix_mode(0o644), 0o644);
        assert_eq!(unix_mode(0o4755), 0o4755);
        // A directory of Go's with the sticky bit; a file with set-user-id.
        assert_eq!(unix_mode(0x8010_01ff), 0o1777);
        assert_eq!(unix_mode(0x0080_01ed), 0o4755);
    }
}
