//! `refs`: the links of blocks, and what the store holds, as lines that come as they are found.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use btfs_storage::dagpb::{self, PbNode};
use btfs_storage::{Cid, hash};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::files::{parse_content, retrieve_error};
use crate::api::call::{Answered, ApiError, NDJSON, Progress, told};
use crate::api::query::Arguments;
use crate::node::Node;
use crate::retrieve::Retriever;

/// Lines waiting for a slow reader; the walk waits after that.
const WAITING: usize = 256;
/// Blocks that `--unique` remembers: a hostile DAG must not fill the memory. As many as a fetch keeps track of.
const MAX_SEEN: usize = 1 << 20;
/// Blocks below each other, at most.
const MAX_DEPTH: usize = 1 << 12;
/// Blocks of the store that are listed at a time.
const PAGE: usize = 4096;

/// One line, in Kubo's shape.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Line {
    /// A link, as the format has it.
    #[serde(rename = "Ref")]
    pub link: String,
    /// Why a DAG could not be followed further.
    pub err: String,
}

/// Which links are listed, and how.
#[derive(Clone, Debug)]
pub struct RefsOptions {
    /// CIDs or /ipfs paths.
    pub references: Vec<String>,
    /// A line with `<src>`, `<dst>` and `<linkname>`.
    pub format: String,
    /// Each link once.
    pub unique: bool,
    /// How far down; `None` for all the way.
    pub max_depth: Option<u64>,
}

impl RefsOptions {
    /// From a query in Kubo's names.
    pub fn parse(arguments: &Arguments) -> Answered<RefsOptions> {
        let format = arguments.get("format").filter(|format| !format.is_empty());
        let format = match (arguments.flag("edges", false)?, format) {
            (true, Some(format)) if format != "<dst>" => {
                return Err(ApiError::bad("format and edges are not given together"));
            }
            (true, _) => "<src> -> <dst>",
            (false, format) => format.unwrap_or("<dst>"),
        };
        let max_depth = match arguments.get("max-depth").map(str::parse::<i64>) {
            None => None,
            Some(Ok(depth)) => u64::try_from(depth).ok(),
            Some(Err(_)) => return Err(ApiError::bad("max-depth is a number")),
        };
        let recursive = arguments.flag("recursive", false)?;
        Ok(RefsOptions {
            references: arguments.all().map(str::to_owned).collect(),
            format: format.to_owned(),
            unique: arguments.flag("unique", false)?,
            max_depth: if recursive { max_depth } else { Some(1) },
        })
    }
}

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    router
        .route("/api/v1/refs", axum::routing::post(refs_route))
        .route("/api/v1/refs/local", axum::routing::post(local_route))
}

/// `refs`, of both versions of the API.
pub async fn refs_route(State(node): State<Arc<Node>>, query: RawQuery) -> Result<Response, ApiError> {
    refs(node, RefsOptions::parse(&Arguments::parse(query))?).await
}

/// `refs/local`, of both versions of the API.
pub async fn local_route(State(node): State<Arc<Node>>) -> Response {
    local(&node)
}

/// The links below some blocks, as they are found.
async fn refs(node: Arc<Node>, options: RefsOptions) -> Result<Response, ApiError> {
    if options.references.is_empty() {
        return Err(ApiError::bad("the request names no block"));
    }
    let retriever = Retriever::new(node);
    let mut roots = Vec::with_capacity(options.references.len());
    for reference in &options.references {
        let reference = parse_content(reference)?;
        let root = retriever.resolve(&reference, &[], &Progress::default()).await.map_err(retrieve_error)?;
        roots.push(root);
    }
    let (lines, mut received) = mpsc::channel(WAITING);
    let mut walk = Walk { retriever, options, seen: HashMap::new(), lines };
    tokio::spawn(async move {
        for root in roots {
            match walk.below(root).await {
                Ok(()) => {}
                Err(Stop::Gone) => return,
                Err(Stop::Failed(err)) => {
                    // A client that went away has nobody to tell.
                    let _ = walk.lines.send(Line { err, ..Line::default() }).await;
                }
            }
        }
    });
    let body = futures::stream::poll_fn(move |context| {
        received.poll_recv(context).map(|line| line.map(|line| Ok::<_, Infallible>(bytes(&line))))
    });
    Ok(([(header::CONTENT_TYPE, NDJSON)], Body::from_stream(body)).into_response())
}

fn bytes(line: &Line) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Every block of the store, under the raw codec: the store keeps hashes, not codecs.
fn local(node: &Node) -> Response {
    let store = node.store.clone();
    let body = super::body::written(move |out| {
        let mut start = None;
        loop {
            // The last of a page is the first of the next.
            let mut page = store.blocks(start.as_ref(), PAGE + 1).map_err(std::io::Error::other)?;
            start = if page.len() > PAGE { page.pop().map(|block| block.cid) } else { None };
            for block in page {
                out.write_all(&bytes(&Line { link: block.cid.to_string(), ..Line::default() }))?;
            }
            if start.is_none() {
                return Ok::<_, std::io::Error>(());
            }
        }
    });
    ([(header::CONTENT_TYPE, NDJSON)], body).into_response()
}

/// Why a walk ends early.
enum Stop {
    /// Nobody reads any more.
    Gone,
    /// What went wrong.
    Failed(String),
}

/// A walk over links. It goes on through blocks that were met before unless each link is wanted once, as Kubo does.
struct Walk {
    retriever: Retriever,
    options: RefsOptions,
    /// Blocks met, and the least depth at which they were.
    seen: HashMap<Cid, u64>,
    lines: mpsc::Sender<Line>,
}

/// A block whose links are being listed.
struct Frame {
    cid: Cid,
    links: std::vec::IntoIter<(Cid, String)>,
}

impl Walk {
    async fn below(&mut self, root: Cid) -> Result<(), Stop> {
        let mut stack = vec![self.frame(root).await?];
        while let Some(frame) = stack.last_mut() {
            let Some((child, name)) = frame.links.next() else {
                stack.pop();
                continue;
            };
            let source = frame.cid;
            let depth = stack.len() as u64;
            let (deeper, told) = self.visit(child, depth)?;
            if told {
                self.tell(&source, &child, &name).await?;
            }
            if deeper && !matches!(child.codec(), hash::RAW | hash::TORRENT_INFO) {
                if stack.len() == MAX_DEPTH {
                    return Err(Stop::Failed(format!("{child} is more than {MAX_DEPTH} blocks deep")));
                }
                stack.push(self.frame(child).await?);
            }
        }
        Ok(())
    }

    /// Whether to go on below a block at this depth, and whether to list it.
    fn visit(&mut self, cid: Cid, depth: u64) -> Result<(bool, bool), Stop> {
        let below = self.options.max_depth.is_none_or(|max| depth < max);
        if self.options.max_depth.is_some_and(|max| depth > max) {
            return Ok((false, false));
        }
        if !self.options.unique {
            return Ok((below, true));
        }
        let before = self.seen.get(&cid).copied();
        if before.is_some_and(|before| self.options.max_depth.is_none() || before <= depth) {
            return Ok((false, false));
        }
        if self.seen.len() == MAX_SEEN {
            return Err(Stop::Failed(format!(
                "more than {MAX_SEEN} blocks; list parts of them, or without --unique"
            )));
        }
        self.seen.insert(cid, depth);
        Ok((below, before.is_none()))
    }

    async fn tell(&self, source: &Cid, target: &Cid, name: &str) -> Result<(), Stop> {
        let link = self
            .options
            .format
            .replace("<src>", &source.to_string())
            .replace("<dst>", &target.to_string())
            .replace("<linkname>", name);
        self.lines.send(Line { link, ..Line::default() }).await.map_err(|_| Stop::Gone)
    }

    async fn frame(&self, cid: Cid) -> Result<Frame, Stop> {
        let failed = |error: anyhow::Error| Stop::Failed(told(&error));
        let block = self.retriever.block(&cid).await.map_err(|error| failed(error.into()))?;
        let links = match PbNode::decode(&block) {
            Ok(node) if cid.codec() == hash::DAG_PB => {
                node.links.into_iter().map(|link| (link.cid, link.name.unwrap_or_default())).collect()
            }
            _ => {
                let links = dagpb::links(&cid, &block).map_err(|error| failed(error.into()))?;
                links.into_iter().map(|link| (link, String::new())).collect::<Vec<_>>()
            }
        };
        Ok(Frame { cid, links: links.into_iter() })
    }
}
