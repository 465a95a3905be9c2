//! `pin` of Kubo's RPC.
//!
//! Lists are ours alone: Kubo's clients know pins of whole DAGs, of single blocks, and of what is below the roots of the
//! former, which may be any number of blocks and is written as it is found.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use btfs_storage::PinKind;
use serde_json::{Value, json};

use super::{Answer, Broken, exactly};
use crate::api::call::{Answered, ApiError, Progress};
use crate::api::query::Arguments;
use crate::calls::body::written;
use crate::calls::pins::{self, PinAddRequest, PinInfo, PinListRequest, PinUpdateRequest};
use crate::node::Node;

/// Kinds of pins as Kubo names them.
const KINDS: [&str; 4] = ["direct", "indirect", "recursive", "all"];

/// What is the matter with a block that a pin lacks.
const LACKING: &str = "the block is damaged or not here";

pub fn routes() -> Router<Arc<Node>> {
    Router::new()
        .route("/api/v0/pin/add", post(add))
        .route("/api/v0/pin/rm", post(rm))
        .route("/api/v0/pin/ls", post(ls))
        .route("/api/v0/pin/update", post(update))
        .route("/api/v0/pin/verify", post(verify))
}

async fn add(State(node): State<Arc<Node>>, query: RawQuery) -> Answer {
    let arguments = Arguments::parse(query);
    let direct = !arguments.flag("recursive", true)?;
    arguments.first()?;
    let mut pinned = Vec::new();
    for reference in arguments.all().map(str::to_owned) {
        let name = arguments.text("name").filter(|name| !name.is_empty());
        let request = PinAddRequest { reference, name, direct, expires_in_secs: None };
        pinned.push(pins::pin_add(node.clone(), request, Progress::default()).await?.cid);
    }
    Ok(axum::Json(json!({ "Pins": pinned })))
}

async fn rm(State(node): State<Arc<Node>>, query: RawQuery) -> Answer {
    let arguments = Arguments::parse(query);
    arguments.first()?;
    let mut removed = Vec::new();
    for reference in arguments.all() {
        removed.push(pins::pin_remove(&node, reference).await?.cid);
    }
    Ok(axum::Json(json!({ "Pins": removed })))
}

async fn update(State(node): State<Arc<Node>>, query: RawQuery) -> Answer {
    let arguments = Arguments::parse(query);
    let [from, to] = exactly(&arguments)?;
    let keep_old = !arguments.flag("unpin", true)?;
    let request = PinUpdateRequest { from, to, keep_old };
    let updated = pins::pin_update(node, request, Progress::default()).await?;
    Ok(axum::Json(json!({ "Pins": [updated.from, updated.pin.cid] })))
}

/// What is listed.
struct Listing {
    kind: String,
    /// Only pins whose name has this in it.
    name: Option<String>,
    /// Names are told.
    names: bool,
    /// An object for each, instead of one with all of them.
    stream: bool,
}

/// What is told of a pin: its kind, and its name.
type Told = (String, String);

impl Listing {
    fn parse(arguments: &Arguments) -> Answered<Listing> {
        let kind = arguments.text("type").filter(|kind| !kind.is_empty()).unwrap_or_else(|| "all".into());
        if !KINDS.contains(&kind.as_str()) {
            return Err(ApiError::bad(format!(
                "invalid type '{kind}', must be one of {{{}}}",
                KINDS.join(", ")
            )));
        }
        let name = arguments.text("name").filter(|name| !name.is_empty());
        let names = arguments.flag("names", false)? || name.is_some();
        Ok(Listing { kind, names, name, stream: arguments.flag("stream", false)? })
    }

    fn request(&self, kind: &str, reference: Option<String>) -> PinListRequest {
        let (kind, name) = (Some(kind.to_owned()), self.name.clone());
        PinListRequest { reference, kind, name, ..PinListRequest::default() }
    }

    fn told(&self, pin: &PinInfo) -> Told {
        let kind = match &pin.through {
            Some(root) => format!("indirect through {root}"),
            None => pin.kind.clone(),
        };
        (kind, pin.name.clone().filter(|_| self.names).unwrap_or_default())
    }

    /// How a block is pinned: whole, else alone, else below another.
    async fn of(&self, node: &Arc<Node>, reference: &str) -> Answered<PinInfo> {
        let kinds: &[&str] = match self.kind.as_str() {
            "all" => &["recursive", "direct", "indirect"],
            kind => &[kind],
        };
        let mut refused = None;
        for kind in kinds {
            match pins::pin_list(node, self.request(kind, Some(reference.to_owned()))).await {
                Ok(list) => {
                    if let Some(pin) = list.pins.into_iter().next() {
                        return Ok(pin);
                    }
                }
                Err(error) if error.status == axum::http::StatusCode::NOT_FOUND => refused = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(refused.unwrap_or_else(|| ApiError::not_found(format!("{reference} is not pinned"))))
    }

    /// The pins that name their roots, each root once.
    async fn named(&self, node: &Arc<Node>) -> Answered<BTreeMap<String, Told>> {
        let mut named = BTreeMap::new();
        if self.kind == "indirect" {
            return Ok(named);
        }
        for pin in pins::pin_list_all(node, self.request(&self.kind, None)).await? {
            // Whoever is pinned in both ways is pinned recursively.
            if pin.kind == "recursive" || (pin.kind == "direct" && !named.contains_key(&pin.cid)) {
                named.insert(pin.cid.clone(), self.told(&pin));
            }
        }
        Ok(named)
    }
}

/// With arguments, how each of them is pinned; fails if one is not.
async fn ls(State(node): State<Arc<Node>>, query: RawQuery) -> Result<Response, ApiError> {
    let arguments = Arguments::parse(query);
    let listing = Listing::parse(&arguments)?;
    let mut named = BTreeMap::new();
    for reference in arguments.all().filter(|reference| !reference.is_empty()) {
        let pin = listing.of(&node, reference).await?;
        let told = listing.told(&pin);
        named.insert(pin.cid, told);
    }
    let below = named.is_empty() && matches!(listing.kind.as_str(), "all" | "indirect");
    if named.is_empty() {
        named = listing.named(&node).await?;
    }
    let store = node.store.clone();
    let body = written(move |out| {
        let mut list = List { out, stream: listing.stream, any: false };
        for (cid, (kind, name)) in &named {
            list.put(cid, kind, name)?;
        }
        if below {
            let wanted = |pin: &btfs_storage::Pin| match &listing.name {
                Some(part) => pin.name.as_ref().is_some_and(|name| name.contains(part)),
                None => true,
            };
            let mut told = Ok(());
            store.indirect(&wanted, &mut |cid, _| {
                told = list.put(&cid.to_string(), "indirect", "");
                told.is_ok()
            })?;
            told?;
        }
        Ok::<_, Broken>(list.end()?)
    });
    Ok(json_body(body))
}

/// The list as it is written.
struct List<'a> {
    out: &'a mut dyn Write,
    stream: bool,
    any: bool,
}

impl List<'_> {
    fn put(&mut self, cid: &str, kind: &str, name: &str) -> io::Result<()> {
        if self.stream {
            let mut line = json!({ "Cid": cid, "Type": kind });
            if !name.is_empty() {
                line["Name"] = name.into();
            }
            return line_of(self.out, &line);
        }
        let before = if self.any { "," } else { "{\"Keys\":{" };
        self.any = true;
        write!(self.out, "{before}{}:{}", json!(cid), json!({ "Type": kind, "Name": name }))
    }

    fn end(self) -> io::Result<()> {
        match (self.stream, self.any) {
            (true, _) => Ok(()),
            (false, true) => self.out.write_all(b"}}\n"),
            (false, false) => self.out.write_all(b"{\"Keys\":{}}\n"),
        }
    }
}

/// A line for each recursive pin that lacks blocks; with `verbose` for the others, too.
async fn verify(State(node): State<Arc<Node>>, query: RawQuery) -> Result<Response, ApiError> {
    let arguments = Arguments::parse(query);
    let (verbose, quiet) = (arguments.flag("verbose", false)?, arguments.flag("quiet", false)?);
    if verbose && quiet {
        return Err(ApiError::bad("the --verbose and --quiet options can not be used at the same time"));
    }
    let store = node.store.clone();
    let body = written(move |out| {
        let mut told = Ok(());
        store.check_pins(&mut |pin, lacks| {
            if pin.kind != PinKind::Recursive || (lacks.is_empty() && !verbose) {
                return true;
            }
            let mut line = json!({ "Cid": pin.root.to_string() });
            if lacks.is_empty() {
                line["Ok"] = true.into();
            } else if !quiet {
                let bad = lacks.iter().map(|cid| json!({ "Cid": cid.to_string(), "Err": LACKING }));
                line["BadNodes"] = bad.collect();
            }
            told = line_of(out, &line);
            told.is_ok()
        })?;
        Ok::<_, Broken>(told?)
    });
    Ok(json_body(body))
}

fn line_of(out: &mut dyn Write, line: &Value) -> io::Result<()> {
    writeln!(out, "{line}")
}

fn json_body(body: axum::body::Body) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}
