//! Calls: a typed request, a typed answer, one handler; the command line and the HTTP API share them.
//!
//! Each call is `POST /api/v1/<PATH>` with the request as JSON. The answer is one JSON object, or, for clients
//! that accept `application/x-ndjson`, a line of progress now and then and at the end one line with `result` or
//! `error`. The command line runs the same routes in process when no daemon has the repo.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::node::Node;

/// A request that the API answers.
pub trait Call: Serialize + DeserializeOwned + Send + 'static {
    /// The path below `/api/v1/`.
    const PATH: &'static str;
    /// What comes back.
    type Answer: Serialize + DeserializeOwned + Send + 'static;
}

/// Names a request, its path and its answer.
#[macro_export]
macro_rules! call {
    ($request:ty => $answer:ty, $path:literal) => {
        impl $crate::api::call::Call for $request {
            const PATH: &'static str = $path;
            type Answer = $answer;
        }
    };
}

/// One line of a streamed answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line<T> {
    /// Work goes on.
    Progress(Step),
    /// It is done.
    Result(T),
    /// It failed.
    Error(String),
}

/// How far a call has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// What is being done, such as `adding`.
    pub what: String,
    /// Units done: blocks if `what` ends with that word, else bytes.
    pub done: u64,
    /// Units in all, if known.
    pub total: Option<u64>,
}

/// Where a handler says how far it is. Lossy: a slow reader sees fewer steps, the work never waits for it.
#[derive(Clone, Debug, Default)]
pub struct Progress(Option<Arc<Told>>);

/// Who is told, and when that was last done.
#[derive(Debug)]
struct Told {
    steps: mpsc::Sender<Step>,
    last: Mutex<Option<Instant>>,
}

impl Progress {
    /// Steps waiting for a slow reader; more are dropped.
    const WAITING: usize = 16;
    /// A step so soon after another is left out: it would be told for each of many small files, which is a tenth of the
    /// time to add them, and nobody sees more.
    const PAUSE: Duration = Duration::from_millis(50);

    fn to(steps: mpsc::Sender<Step>) -> Progress {
        Progress(Some(Arc::new(Told { steps, last: Mutex::new(None) })))
    }

    /// Whether whoever asked to be told went away.
    pub fn is_unheard(&self) -> bool {
        self.0.as_ref().is_some_and(|told| told.steps.is_closed())
    }

    /// Tells how far `what` is.
    pub fn step(&self, what: &str, done: u64, total: Option<u64>) {
        let Some(told) = &self.0 else { return };
        // Busy: another step is being told at this moment.
        let Some(mut last) = told.last.try_lock() else { return };
        let now = Instant::now();
        if last.is_none_or(|last| now - last >= Self::PAUSE) {
            *last = Some(now);
            // Full or gone: the next step says more anyway.
            let _ = told.steps.try_send(Step { what: what.to_owned(), done, total });
        }
    }
}

/// A failure as the API tells it.
#[derive(Debug)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// What failed, what is unaffected, what to do.
    pub message: String,
}

impl ApiError {
    /// The request itself is wrong.
    pub fn bad(message: impl std::fmt::Display) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.to_string() }
    }

    /// Nothing is there under that name.
    pub fn not_found(message: impl std::fmt::Display) -> Self {
        Self { status: StatusCode::NOT_FOUND, message: message.to_string() }
    }

    /// The call needs a service that does not run.
    pub fn unavailable(message: impl std::fmt::Display) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, message: message.to_string() }
    }
}

/// Any other error is a failure of the work itself; its whole chain is told.
impl<E: Into<anyhow::Error>> From<E> for ApiError {
    fn from(error: E) -> Self {
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, message: told(&error.into()) }
    }
}

/// An error with its causes on one line, without those that it already quotes.
pub fn told(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match cause.trim() {
        cause if text.is_empty() => cause.to_owned(),
        cause if text.contains(cause) => text,
        cause => format!("{text}: {cause}"),
    })
}

/// The body of a failed call: both our shape and Kubo's.
#[derive(Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What failed.
    #[serde(rename = "Message")]
    pub message: String,
    /// Always 0, as Kubo has it.
    #[serde(rename = "Code")]
    pub code: u32,
    /// Always `error`.
    #[serde(rename = "Type")]
    pub kind: String,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = ErrorBody { message: self.message, code: 0, kind: "error".into() };
        (self.status, axum::Json(body)).into_response()
    }
}

/// What a handler gives back.
pub type Answered<T> = Result<T, ApiError>;

/// Adds the route of `C`, answered by `handler`.
pub fn route<C, H, F>(router: Router<Arc<Node>>, handler: H) -> Router<Arc<Node>>
where
    C: Call,
    H: Fn(Arc<Node>, C, Progress) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answered<C::Answer>> + Send + 'static,
{
    let serve = move |State(node): State<Arc<Node>>, headers: HeaderMap, body: Bytes| async move {
        let request: C = match parse(&body) {
            Ok(request) => request,
            Err(error) => return error.into_response(),
        };
        let streamed = headers
            .get(header::ACCEPT)
            .and_then(|accept| accept.to_str().ok())
            .is_some_and(|accept| accept.contains(NDJSON));
        if streamed {
            stream::<C, _, _>(node, request, handler)
        } else {
            plain(handler(node, request, Progress::default()).await)
        }
    };
    router.route(&format!("/api/v1/{}", C::PATH), axum::routing::post(serve))
}

/// The media type of streamed answers.
pub const NDJSON: &str = "application/x-ndjson";

fn parse<C: Call>(body: &[u8]) -> Result<C, ApiError> {
    let body = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| ApiError::bad(format!("{}: {error}", C::PATH)))
}

fn plain<T: Serialize>(answer: Answered<T>) -> Response {
    match answer {
        Ok(answer) => axum::Json(answer).into_response(),
        Err(error) => error.into_response(),
    }
}

/// Answers line by line. The work ends when it is done or when the client goes away.
fn stream<C, H, F>(node: Arc<Node>, request: C, handler: H) -> Response
where
    C: Call,
    H: Fn(Arc<Node>, C, Progress) -> F + Send + 'static,
    F: Future<Output = Answered<C::Answer>> + Send + 'static,
{
    let (steps, mut told) = mpsc::channel(Progress::WAITING);
    let (lines, received) = mpsc::channel::<Vec<u8>>(Progress::WAITING);
    tokio::spawn(async move {
        let mut work = Box::pin(handler(node, request, Progress::to(steps)));
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut work => break answer,
                // A reader that does not keep up sees fewer steps.
                Some(step) = told.recv() => {
                    let _ = lines.try_send(line(&Line::<()>::Progress(step)));
                }
                () = lines.closed() => return,
            }
        };
        let last = match answer {
            Ok(answer) => line(&Line::Result(answer)),
            Err(error) => line(&Line::<()>::Error(error.message)),
        };
        // A client that left before the last line has nobody to tell.
        let _ = lines.send(last).await;
    });
    let body = futures::stream::unfold(received, |mut received| async move {
        received.recv().await.map(|line| (Ok::<_, std::convert::Infallible>(line), received))
    });
    ([(header::CONTENT_TYPE, NDJSON)], Body::from_stream(body)).into_response()
}

fn line<T: Serialize>(line: &Line<T>) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(line)
        .unwrap_or_else(|error| format!("{{\"error\":\"the answer is not JSON: {error}\"}}").into_bytes());
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::told;

    #[test]
    fn a_cause_is_told_once() {
        let cause = std::io::Error::other("disk on fire");
        assert_eq!(told(&anyhow::Error::new(cause).context("cannot write")), "cannot write: disk on fire");
        let quoted = anyhow::anyhow!("disk on fire").context("cannot write: disk on fire; nothing was kept");
        assert_eq!(told(&quoted), "cannot write: disk on fire; nothing was kept");
    }
}
