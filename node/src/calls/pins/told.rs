//! What is told of pins as it is found, a line each: the blocks below their roots, and which pins lack blocks. There may be
//! any number of either, so nobody holds all of them.

use std::io::{self, Write};
use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use btfs_storage::{Cid, Pin, StoreError};
use serde::{Deserialize, Serialize};

use super::{PinInfo, Wanted, pin_info};
use crate::api::call::{ApiError, Line, NDJSON};
use crate::calls::body::written;
use crate::node::Node;

/// Which pins are walked.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct IndirectQuery {
    /// Those whose name has this in it.
    name: Option<String>,
    /// Those of this owner.
    owner: Option<String>,
}

/// Which pins are told of.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct VerifyQuery {
    /// Those that lack nothing, too.
    verbose: bool,
}

/// What was found of a pin.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PinCheck {
    /// The pin.
    pub pin: PinInfo,
    /// Whether everything it keeps is here.
    pub complete: bool,
    /// Blocks that it lacks, at most a thousand; what hangs below an absent node is not known.
    pub lacks: Vec<String>,
}

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    router.route("/api/v1/pin/indirect", post(indirect)).route("/api/v1/pin/verify", post(verify))
}

/// A block below the root of a pin, as a pin of its own.
pub fn indirect_info(cid: &Cid, pin: &Pin) -> PinInfo {
    PinInfo {
        cid: cid.to_string(),
        kind: "indirect".into(),
        name: None,
        through: Some(pin.root.to_string()),
        ..pin_info(pin)
    }
}

/// The blocks below the roots of pins, each with one of them.
async fn indirect(
    State(node): State<Arc<Node>>,
    Query(query): Query<IndirectQuery>,
) -> Result<Response, ApiError> {
    let wanted = Wanted::new(Some("indirect"), query.name, query.owner)?;
    let store = node.store.clone();
    Ok(lines(move |tell| {
        store.indirect(&|pin| wanted.has_name_of(pin), &mut |cid, pin| tell(indirect_info(cid, pin)))
    }))
}

/// The pins that lack blocks, or all of them.
async fn verify(State(node): State<Arc<Node>>, Query(query): Query<VerifyQuery>) -> Response {
    let store = node.store.clone();
    lines(move |tell| {
        store.check_pins(&mut |pin, lacks| {
            let complete = lacks.is_empty();
            let lacks = lacks.iter().map(Cid::to_string).collect();
            (complete && !query.verbose) || tell(PinCheck { pin: pin_info(&pin), complete, lacks })
        })
    })
}

/// Results as `work` tells them, and an error at the end if it fails. Telling answers whether anybody still listens.
fn lines<T: Serialize + 'static>(
    work: impl FnOnce(&mut dyn FnMut(T) -> bool) -> Result<(), StoreError> + Send + 'static,
) -> Response {
    let body = written(move |out| {
        let mut told = Ok(());
        let done = work(&mut |result| {
            told = line(out, &Line::Result(result));
            told.is_ok()
        });
        told?;
        match done {
            Ok(()) => Ok(()),
            Err(error) => line(out, &Line::<T>::Error(error.to_string())),
        }
    });
    ([(header::CONTENT_TYPE, NDJSON)], body).into_response()
}

fn line<T: Serialize>(out: &mut dyn Write, line: &Line<T>) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}
