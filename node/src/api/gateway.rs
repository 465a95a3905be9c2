//! The path gateway: `GET /ipfs/CID[/path]` as the IPFS path and trustless gateway specifications have it.
//!
//! Answers are immutable, so they carry an ETag and may be cached for ever. Single byte ranges are served; a
//! directory shows its `index.html` or a listing. `?format=raw` (or the matching Accept header) gives one block
//! for clients that verify by themselves.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use btfs_storage::Cid;
use btfs_storage::read::{Kind, ReadError};
use serde::Deserialize;
use tokio::io::AsyncReadExt;

use super::call::ApiError;
use super::media;
use crate::node::Node;
use crate::retrieve::{RetrieveError, Retriever};

/// The gateway's routes.
pub fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/ipfs/{cid}", axum::routing::get(root))
        .route("/ipfs/{cid}/", axum::routing::get(root))
        .route("/ipfs/{cid}/{*path}", axum::routing::get(below))
        .route("/", axum::routing::get(|| async { "A path gateway: ask for /ipfs/CID or /ipfs/CID/path.\n" }))
        .with_state(node)
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Wanted {
    format: Option<String>,
}

/// The media type of one verifiable block.
const RAW_BLOCK: &str = "application/vnd.ipld.raw";

async fn root(
    State(node): State<Arc<Node>>,
    Path(cid): Path<String>,
    Query(wanted): Query<Wanted>,
    method: Method,
    uri: axum::http::Uri,
    headers: HeaderMap,
) -> Response {
    let slash = uri.path().ends_with('/');
    answer(&node, Asked { cid, path: String::new(), slash, method, wanted, headers }).await
}

async fn below(
    State(node): State<Arc<Node>>,
    Path((cid, path)): Path<(String, String)>,
    Query(wanted): Query<Wanted>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let slash = path.ends_with('/');
    answer(&node, Asked { cid, path: path.trim_matches('/').to_owned(), slash, method, wanted, headers })
        .await
}

struct Asked {
    cid: String,
    path: String,
    slash: bool,
    method: Method,
    wanted: Wanted,
    headers: HeaderMap,
}

impl Asked {
    fn wants_raw(&self) -> bool {
        let accepts = |value: &HeaderValue| value.to_str().is_ok_and(|accept| accept.contains(RAW_BLOCK));
        self.wanted.format.as_deref() == Some("raw") || self.headers.get(header::ACCEPT).is_some_and(accepts)
    }

    /// Formats of the gateway specifications that this gateway does not make are refused, never answered with another.
    fn check_format(&self) -> Result<(), ApiError> {
        let accept =
            self.headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
        let asked = self.wanted.format.as_deref().filter(|format| *format != "raw");
        match asked.or(accept.contains("application/vnd.ipld.car").then_some("car")) {
            None => Ok(()),
            Some(format) => Err(ApiError {
                status: StatusCode::NOT_ACCEPTABLE,
                message: format!(
                    "this gateway does not make the format `{format}`; there are files, listings and `raw`"
                ),
            }),
        }
    }

    fn shown_path(&self) -> String {
        let slash = if self.path.is_empty() { "" } else { "/" };
        format!("/ipfs/{}{slash}{}", self.cid, self.path)
    }
}

async fn answer(node: &Arc<Node>, asked: Asked) -> Response {
    match try_answer(node, &asked).await {
        Ok(response) => response,
        Err(error) => (error.status, format!("{}\n", error.message)).into_response(),
    }
}

fn failed(error: RetrieveError) -> ApiError {
    let status = match &error {
        RetrieveError::NotFound { .. } => StatusCode::GATEWAY_TIMEOUT,
        RetrieveError::NoSuchPath { .. } | RetrieveError::Offline { .. } => StatusCode::NOT_FOUND,
        // These name files and paths of this machine, which whoever is on the web need not know.
        RetrieveError::Store(_) | RetrieveError::Read(ReadError::Store(_)) => {
            tracing::warn!(%error, "the gateway could not read its store");
            let message = "the content cannot be read on this node; its log says why".into();
            return ApiError { status: StatusCode::INTERNAL_SERVER_ERROR, message };
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    ApiError { status, message: error.to_string() }
}

async fn try_answer(node: &Arc<Node>, asked: &Asked) -> Result<Response, ApiError> {
    asked.check_format()?;
    let root: Cid = asked
        .cid
        .parse()
        .map_err(|error| ApiError::bad(format!("`{}` is not a valid CID: {error}", asked.cid)))?;
    let retriever =
        if node.config.gateway.fetch { Retriever::new(node.clone()) } else { Retriever::local(node.clone()) };
    let cid = retriever.path(&root, &asked.path).await.map_err(failed)?;
    let headers = common_headers(asked, &cid)?;
    let unchanged = is_known(asked, &headers);
    if asked.wants_raw() {
        let block = retriever.block(&cid).await.map_err(failed)?;
        if unchanged {
            return Ok((StatusCode::NOT_MODIFIED, headers).into_response());
        }
        let kind = [(header::CONTENT_TYPE, RAW_BLOCK), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
        let name = [(header::CONTENT_DISPOSITION, format!("attachment; filename=\"{cid}.bin\""))];
        return Ok((headers, kind, name, Body::from(block)).into_response());
    }
    let stat = retriever.stat(&cid).await.map_err(failed)?;
    match stat.kind {
        Kind::File | Kind::Symlink if unchanged => Ok((StatusCode::NOT_MODIFIED, headers).into_response()),
        Kind::Directory => directory(&retriever, asked, &cid, headers).await,
        _ => file(&retriever, asked, &cid, stat.size, headers, &asked.path).await,
    }
}

fn common_headers(asked: &Asked, cid: &Cid) -> Result<HeaderMap, ApiError> {
    let suffix = if asked.wants_raw() { ".raw" } else { "" };
    let mut headers = HeaderMap::new();
    let mut set = |name: HeaderName, value: String| -> Result<(), ApiError> {
        headers.insert(name, HeaderValue::from_str(&value)?);
        Ok(())
    };
    set(header::ETAG, format!("\"{cid}{suffix}\""))?;
    set(header::VARY, "Accept".into())?;
    set(header::CACHE_CONTROL, "public, max-age=29030400, immutable".into())?;
    set(HeaderName::from_static("x-ipfs-roots"), cid.to_string())?;
    let path = percent_encoding::utf8_percent_encode(&asked.shown_path(), PATH_BYTES).to_string();
    set(HeaderName::from_static("x-ipfs-path"), path)?;
    // Content of strangers on a shared origin: nothing here may act as this origin's page.
    set(header::ACCESS_CONTROL_ALLOW_ORIGIN, "*".into())?;
    set(HeaderName::from_static("content-security-policy"), "sandbox allow-scripts".into())?;
    Ok(headers)
}

/// Bytes of a path that a header or link must escape.
const PATH_BYTES: &percent_encoding::AsciiSet =
    &percent_encoding::CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>').add(b'?').add(b'%');

/// Whether the asker says it has what these headers describe.
fn is_known(asked: &Asked, headers: &HeaderMap) -> bool {
    let ours = headers.get(header::ETAG).and_then(|tag| tag.to_str().ok()).unwrap_or_default();
    let theirs = asked.headers.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
    theirs.is_some_and(|tags| {
        tags.split(',').map(|tag| tag.trim().trim_start_matches("W/")).any(|tag| tag == "*" || tag == ours)
    })
}

/// What a Range header asks of `size` bytes.
#[derive(Debug, PartialEq, Eq)]
enum Span {
    Whole,
    Part { start: u64, length: u64 },
    Unsatisfiable,
}

/// Reads a single byte range; several at once, or another unit, get the whole file, as RFC 9110 allows.
fn span(range: Option<&str>, size: u64) -> Span {
    let Some((first, last)) = range
        .and_then(|range| range.strip_prefix("bytes="))
        .filter(|r| !r.contains(','))
        .and_then(|r| r.split_once('-'))
    else {
        return Span::Whole;
    };
    let (start, end) = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(start), Ok(last)) if start <= last => (start, last.saturating_add(1).min(size)),
        (Ok(start), Err(_)) if last.trim().is_empty() => (start, size),
        (Err(_), Ok(suffix)) if first.trim().is_empty() => (size.saturating_sub(suffix), size),
        _ => return Span::Whole,
    };
    if start >= end { Span::Unsatisfiable } else { Span::Part { start, length: end - start } }
}

async fn file(
    retriever: &Retriever,
    asked: &Asked,
    cid: &Cid,
    size: u64,
    mut headers: HeaderMap,
    name: &str,
) -> Result<Response, ApiError> {
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let range = asked.headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    let (status, start, length) = match span(range, size) {
        Span::Whole => (StatusCode::OK, 0, size),
        Span::Part { start, length } => {
            let shown = format!("bytes {start}-{}/{size}", start + length - 1);
            headers.insert(header::CONTENT_RANGE, HeaderValue::from_str(&shown)?);
            (StatusCode::PARTIAL_CONTENT, start, length)
        }
        Span::Unsatisfiable => {
            headers.insert(header::CONTENT_RANGE, HeaderValue::from_str(&format!("bytes */{size}"))?);
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, headers).into_response());
        }
    };
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    let mut content = retriever.open(cid).await.map_err(failed)?;
    let media = match media::by_name(name) {
        Some(media) => media,
        None => {
            let mut head = Vec::with_capacity(media::HEAD);
            let read = (&mut content).take(media::HEAD as u64).read_to_end(&mut head).await;
            read.map_err(|error| match error.downcast::<RetrieveError>() {
                Ok(error) => failed(error),
                Err(error) => ApiError::from(error),
            })?;
            media::by_content(&head)
        }
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    if asked.method == Method::HEAD {
        return Ok((status, headers).into_response());
    }
    Ok((status, headers, Body::from_stream(content.range(start, length))).into_response())
}

async fn directory(
    retriever: &Retriever,
    asked: &Asked,
    cid: &Cid,
    mut headers: HeaderMap,
) -> Result<Response, ApiError> {
    let entries = retriever.list(cid).await.map_err(failed)?;
    if let Some(index) = entries.iter().find(|entry| entry.name == "index.html") {
        if !asked.slash {
            let path = percent_encoding::utf8_percent_encode(&asked.shown_path(), PATH_BYTES).to_string();
            return Ok(Redirect::permanent(&format!("{path}/")).into_response());
        }
        let stat = retriever.stat(&index.cid).await.map_err(failed)?;
        return file(retriever, asked, &index.cid, stat.size, headers, "index.html").await;
    }
    let base = asked.shown_path();
    let rows: String = entries
        .iter()
        .map(|entry| {
            let link = percent_encoding::utf8_percent_encode(&format!("{base}/{}", entry.name), PATH_BYTES)
                .to_string();
            format!(
                "<li><a href=\"{}\">{}</a> {}</li>\n",
                escape(&link),
                escape(&entry.name),
                entry.size.unwrap_or(entry.dag_size)
            )
        })
        .collect();
    // A listing depends on this program's version, not on the content alone.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=604800"));
    headers.insert(header::ETAG, HeaderValue::from_str(&format!("\"DirIndex-1_CID-{cid}\""))?);
    if is_known(asked, &headers) {
        return Ok((StatusCode::NOT_MODIFIED, headers).into_response());
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    let page = format!(
        "<!doctype html><meta charset=\"utf-8\"><title>{0}</title><h1>{0}</h1><ul>\n{rows}</ul>\n",
        escape(&base)
    );
    Ok((headers, page).into_response())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_as_rfc_9110_has_them() {
        let part = |start, length| Span::Part { start, length };
        for (range, expected) in [
            (None, Span::Whole),
            (Some("bytes=0-9"), part(0, 10)),
            (Some("bytes=90-200"), part(90, 10)),
            (Some("bytes=95-"), part(95, 5)),
            (Some("bytes=-5"), part(95, 5)),
            (Some("bytes=-500"), part(0, 100)),
            (Some("bytes=100-"), Span::Unsatisfiable),
            (Some("bytes=-0"), Span::Unsatisfiable),
            (Some("bytes=0-1,4-5"), Span::Whole),
            (Some("bytes=9-3"), Span::Whole),
            (Some("items=0-9"), Span::Whole),
        ] {
            assert_eq!(span(range, 100), expected, "{range:?}");
        }
    }
}
