//! How the command line reaches a node: the daemon's API if one has the repo, else the same routes in process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use axum::body::Body;
use axum::http::{Method, Request, header};
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use tower::ServiceExt;

use crate::api::call::{Call, ErrorBody, Line, NDJSON};
use crate::node::Node;
use crate::repo::{Repo, RepoError};

/// A way to one node.
pub struct Client {
    route: Route,
    progress: bool,
}

enum Route {
    Daemon { http: reqwest::Client, base: String, token: String },
    InProcess { node: Arc<Node>, router: axum::Router },
}

type Chunks = BoxStream<'static, anyhow::Result<Bytes>>;

impl Client {
    /// How long a starting daemon may take to say where it listens.
    const DAEMON_STARTS: Duration = Duration::from_secs(5);

    /// Finds the daemon of `repo`, or opens the repo in this process.
    pub async fn open(repo: &Repo, progress: bool) -> anyhow::Result<Self> {
        let deadline = Instant::now() + Self::DAEMON_STARTS;
        loop {
            match repo.lock() {
                Ok(lock) => {
                    if lock.is_read_only() {
                        eprintln!(
                            "btfs: the disk of {} is read-only: what is there can be read, nothing can be changed",
                            repo.root().display()
                        );
                    } else {
                        repo.clear_api_address();
                    }
                    let node = Arc::new(Node::open(repo.clone(), lock).await?);
                    let router = crate::api::in_process(node.clone());
                    return Ok(Self { route: Route::InProcess { node, router }, progress });
                }
                Err(in_use @ RepoError::InUse { .. }) => match Self::daemon(repo, progress).await {
                    Ok(client) => return Ok(client),
                    // Its holder is starting, or a short command that will be gone in a moment.
                    Err(_) if Instant::now() < deadline => {
                        tokio::time::sleep(Duration::from_millis(50)).await
                    }
                    Err(_) if repo.api_address().is_none() => return Err(in_use.into()),
                    Err(error) => return Err(error),
                },
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The daemon of `repo`, if it answers.
    pub async fn daemon(repo: &Repo, progress: bool) -> anyhow::Result<Self> {
        let address = repo.api_address().ok_or_else(|| {
            anyhow!("no daemon runs on {}; start one with `btfs daemon`", repo.root().display())
        })?;
        let http = reqwest::Client::builder().no_proxy().build().context("cannot make an HTTP client")?;
        let base = format!("http://{address}");
        http.get(format!("{base}/api/v1/ready"))
            .bearer_auth(repo.token()?)
            .timeout(Duration::from_secs(5))
            .send()
            .await
            .and_then(reqwest::Response::error_for_status)
            .with_context(|| {
                format!("the daemon of {} does not answer at {address}", repo.root().display())
            })?;
        Ok(Self { route: Route::Daemon { http, base, token: repo.token()? }, progress })
    }

    /// Whether a daemon answers, so that networks can be reached.
    pub fn is_daemon(&self) -> bool {
        matches!(self.route, Route::Daemon { .. })
    }

    /// Sends a call and waits for its answer, with a progress bar on a terminal.
    pub async fn call<C: Call>(&self, request: &C) -> anyhow::Result<C::Answer> {
        let path = format!("/api/v1/{}", C::PATH);
        let body = serde_json::to_vec(request)?;
        let mut chunks = self.send(Method::POST, &path, Some(NDJSON), body.into()).await?;
        let mut bar = super::progress::Bar::new(self.progress);
        let mut pending = Vec::new();
        while let Some(chunk) = chunks.try_next().await? {
            pending.extend_from_slice(&chunk);
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                match serde_json::from_slice::<Line<C::Answer>>(&line)? {
                    Line::Progress(step) => bar.show(&step),
                    Line::Result(answer) => {
                        bar.clear();
                        return Ok(answer);
                    }
                    Line::Error(message) => {
                        bar.clear();
                        bail!(message);
                    }
                }
            }
        }
        bail!(
            "the node ended the connection before it answered {}; whether the call took effect is not known",
            C::PATH
        )
    }

    /// Gets a stream of bytes, such as a file's content.
    pub async fn bytes(&self, path_and_query: &str) -> anyhow::Result<Chunks> {
        self.send(Method::POST, path_and_query, None, Body::empty()).await
    }

    /// Asks for any number of results; `show` gets them as they come, some at a time.
    pub async fn results<T: serde::de::DeserializeOwned>(
        &self,
        path_and_query: &str,
        show: &mut dyn FnMut(Vec<T>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut chunks = self.bytes(path_and_query).await?;
        let mut pending = Vec::new();
        while let Some(chunk) = chunks.try_next().await? {
            pending.extend_from_slice(&chunk);
            let Some(end) = pending.iter().rposition(|byte| *byte == b'\n') else { continue };
            let whole: Vec<u8> = pending.drain(..=end).collect();
            let (mut results, mut failed) = (Vec::new(), None);
            for line in whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                match serde_json::from_slice::<Line<T>>(line)? {
                    Line::Result(result) => results.push(result),
                    Line::Error(message) => failed = Some(message),
                    Line::Progress(_) => {}
                }
            }
            show(results)?;
            if let Some(message) = failed {
                bail!(message);
            }
        }
        Ok(())
    }

    /// Sends a body as it comes, such as standard input, and reads the JSON answer.
    pub async fn upload<A: serde::de::DeserializeOwned>(
        &self,
        path_and_query: &str,
        body: Body,
    ) -> anyhow::Result<A> {
        let mut chunks = self.send(Method::POST, path_and_query, None, body).await?;
        let mut answer = Vec::new();
        while let Some(chunk) = chunks.try_next().await? {
            answer.extend_from_slice(&chunk);
        }
        Ok(serde_json::from_slice(&answer)?)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        accept: Option<&str>,
        body: Body,
    ) -> anyhow::Result<Chunks> {
        match &self.route {
            Route::Daemon { http, base, token } => {
                let mut request = http
                    .request(method, format!("{base}{path}"))
                    .bearer_auth(token)
                    .header(header::CONTENT_TYPE, "application/json")
                    .body(reqwest::Body::wrap_stream(body.into_data_stream()));
                if let Some(accept) = accept {
                    request = request.header(header::ACCEPT, accept);
                }
                let response = request.send().await.context("the daemon does not answer")?;
                let status = response.status();
                if !status.is_success() {
                    return Err(refused(status, &response.bytes().await?));
                }
                Ok(response
                    .bytes_stream()
                    .map_err(|error| anyhow!(error).context("the daemon's answer broke off"))
                    .boxed())
            }
            Route::InProcess { router, .. } => {
                let mut request = Request::builder().method(method).uri(path).body(body)?;
                if let Some(accept) = accept {
                    request.headers_mut().insert(header::ACCEPT, accept.parse()?);
                }
                let response = router.clone().oneshot(request).await?;
                let status = response.status();
                let mut chunks =
                    response.into_body().into_data_stream().map_err(|error| anyhow!(error)).boxed();
                if !status.is_success() {
                    let mut text = Vec::new();
                    while let Some(chunk) = chunks.try_next().await? {
                        text.extend_from_slice(&chunk);
                    }
                    return Err(refused(status, &text));
                }
                Ok(chunks)
            }
        }
    }

    /// Closes the repo, if it was opened here.
    pub async fn close(self) -> anyhow::Result<()> {
        if let Route::InProcess { node, router } = self.route {
            drop(router);
            node.close().await?;
        }
        Ok(())
    }
}

fn refused(status: axum::http::StatusCode, body: &[u8]) -> anyhow::Error {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(error) => anyhow!(error.message),
        Err(_) => anyhow!("the node answered {status}: {}", String::from_utf8_lossy(body)),
    }
}
