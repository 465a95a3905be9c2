//! Answers inbound requests: admits, reads, calls the handler, writes the answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::AsyncWriteExt;
use libp2p::PeerId;
use libp2p::swarm::Stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::frame::{FrameError, read_frame, write_frame};
use super::limit::RateLimit;
use super::streams::Inbound;
use super::{MAX_ERROR_TEXT, MAX_HANDLER_TIME, RpcService, STATUS_BUSY, STATUS_ERROR, STATUS_OK, cut_text};

/// Requests handled at once over all peers, long-polls included.
pub const MAX_CONCURRENT: usize = 512;

/// Requests of one peer handled at once, so that one peer's long-polls leave room for the others.
pub const MAX_CONCURRENT_PER_PEER: usize = 32;

/// "Busy" answers being written at once; beyond it the stream is just reset.
const MAX_REFUSALS: usize = 64;

/// Time for a request to arrive in full, and for an answer to be taken: some megabytes over a slow line.
const TRANSFER_TIME: Duration = Duration::from_secs(60);

/// Owns the inbound side until `stop` is cancelled; then running handlers are dropped.
pub(crate) async fn serve(
    services: Vec<RpcService>,
    mut inbound: mpsc::Receiver<Inbound>,
    stop: CancellationToken,
) {
    let services: HashMap<&'static str, Arc<RpcService>> =
        services.into_iter().map(|service| (service.protocol, Arc::new(service))).collect();
    let mut admission = Admission::new();
    let mut tasks = JoinSet::new();
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            Some(done) = tasks.join_next(), if !tasks.is_empty() => {
                if let Err(error) = done && error.is_panic() {
                    tracing::error!(%error, "an rpc handler panicked; its caller saw the stream reset");
                }
                continue;
            }
            next = inbound.recv() => match next { Some(stream) => stream, None => break },
        };
        let Some(service) = services.get(stream.protocol.as_ref()) else {
            // Only protocols of `services` are negotiated.
            tracing::error!(protocol = %stream.protocol, "a stream of a protocol that is not served");
            continue;
        };
        match admission.admit(stream.peer, Instant::now()) {
            Ok(slot) => {
                tasks.spawn(answer(service.clone(), stream.peer, stream.stream, slot));
            }
            Err(reason) => {
                tracing::debug!(peer = %stream.peer, protocol = %stream.protocol, reason, "request refused");
                if let Ok(permit) = admission.refusals.clone().try_acquire_owned() {
                    tasks.spawn(refuse(stream.stream, reason, permit));
                }
            }
        }
    }
}

/// The limits, in the order in which they are asked.
struct Admission {
    rate: RateLimit,
    total: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    by_peer: HashMap<PeerId, Arc<Semaphore>>,
}

/// The right to run one handler; given back on drop.
struct Slot {
    _total: OwnedSemaphorePermit,
    _peer: OwnedSemaphorePermit,
}

impl Admission {
    fn new() -> Self {
        Admission {
            rate: RateLimit::default(),
            total: Arc::new(Semaphore::new(MAX_CONCURRENT)),
            refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
            by_peer: HashMap::new(),
        }
    }

    fn admit(&mut self, peer: PeerId, now: Instant) -> Result<Slot, String> {
        if let Err(wait) = self.rate.admit(peer, now) {
            return Err(format!("over the request rate; wait {} ms", wait.as_millis().max(1)));
        }
        let Ok(total) = self.total.clone().try_acquire_owned() else {
            return Err(format!("{MAX_CONCURRENT} requests are being handled"));
        };
        // Entries without a running request go whenever the map outgrows the requests that can run.
        if self.by_peer.len() > MAX_CONCURRENT {
            self.by_peer.retain(|_, slots| slots.available_permits() < MAX_CONCURRENT_PER_PEER);
        }
        let slots =
            self.by_peer.entry(peer).or_insert_with(|| Arc::new(Semaphore::new(MAX_CONCURRENT_PER_PEER)));
        match slots.clone().try_acquire_owned() {
            Ok(permit) => Ok(Slot { _total: total, _peer: permit }),
            Err(_) => Err(format!("{MAX_CONCURRENT_PER_PEER} of your requests are being handled")),
        }
    }
}

async fn refuse(mut stream: Stream, reason: String, _permit: OwnedSemaphorePermit) {
    let write = async {
        write_frame(&mut stream, &[&[STATUS_BUSY], reason.as_bytes()]).await?;
        stream.close().await
    };
    if let Ok(Err(error)) = tokio::time::timeout(TRANSFER_TIME, write).await {
        tracing::trace!(%error, "a refused peer did not wait for the reason");
    }
}

async fn answer(service: Arc<RpcService>, peer: PeerId, mut stream: Stream, slot: Slot) {
    let protocol = service.protocol;
    let request =
        match tokio::time::timeout(TRANSFER_TIME, read_frame(&mut stream, service.max_request)).await {
            Ok(Ok(request)) => Ok(request),
            Ok(Err(FrameError::TooLarge(bytes))) => {
                Err(format!("a request of {bytes} bytes is above the cap of {} bytes", service.max_request))
            }
            Ok(Err(FrameError::Io(error))) => {
                tracing::debug!(%peer, protocol, %error, "a request did not arrive");
                return;
            }
            Err(_) => {
                tracing::debug!(%peer, protocol, "a request did not arrive in time");
                return;
            }
        };
    let result = match request {
        Ok(request) => handle(&service, peer, request).await,
        Err(text) => Err(text),
    };
    let (status, body) = match &result {
        Ok(body) => (STATUS_OK, &body[..]),
        Err(text) => (STATUS_ERROR, cut_text(text, MAX_ERROR_TEXT).as_bytes()),
    };
    let write = async {
        write_frame(&mut stream, &[&[status], body]).await?;
        stream.close().await
    };
    match tokio::time::timeout(TRANSFER_TIME, write).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%peer, protocol, %error, "an answer was not taken"),
        Err(_) => tracing::debug!(%peer, protocol, "an answer was not taken in time"),
    }
    drop(slot);
}

async fn handle(service: &RpcService, peer: PeerId, request: Vec<u8>) -> Result<Vec<u8>, String> {
    match tokio::time::timeout(MAX_HANDLER_TIME, service.handler.handle(peer, request)).await {
        Ok(Ok(body)) if body.len() > service.max_response => {
            tracing::error!(protocol = service.protocol, bytes = body.len(), "an answer is above its cap");
            Err(format!("the answer is above the cap of {} bytes", service.max_response))
        }
        Ok(result) => result,
        Err(_) => Err(format!("not done within {} s", MAX_HANDLER_TIME.as_secs())),
    }
}
