//! Inbound streams whose sender does not listen.
//!
//! Kubo sends each Bitswap answer on a stream of its own: it writes the name of the protocol and the answer in one go,
//! and closes the stream for reading too without waiting for the name to be confirmed. Over QUIC that closing reaches us
//! as STOP_SENDING, often before the confirmation is written; the write fails, the negotiation with it, and the answer,
//! which is there to be read, is lost with the stream.
//!
//! So a [`Lenient`] muxer takes the first bytes written to an inbound stream, which are the negotiation's, as written
//! even when the other side has stopped listening: that it does not want to hear the confirmation is no reason not to
//! read what it sent. What a protocol writes later fails as ever. yamux has no such signal and needs none of this.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::{AsyncRead, AsyncWrite};
use libp2p::core::StreamMuxer;
use libp2p::core::muxing::StreamMuxerEvent;

/// Bytes that a negotiation writes at most when it succeeds: the header and the name, with some refusals before.
const NEGOTIATION: usize = 1024;

/// A muxer whose inbound streams can be negotiated though the other side has stopped listening.
pub(crate) struct Lenient<M>(pub(crate) M);

impl<M: StreamMuxer + Unpin> StreamMuxer for Lenient<M>
where
    M::Substream: Unpin,
{
    type Substream = LenientStream<M::Substream>;
    type Error = M::Error;

    fn poll_inbound(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(Pin::new(&mut self.get_mut().0).poll_inbound(cx))?;
        Poll::Ready(Ok(LenientStream { stream, forgiving: NEGOTIATION }))
    }

    fn poll_outbound(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(Pin::new(&mut self.get_mut().0).poll_outbound(cx))?;
        Poll::Ready(Ok(LenientStream { stream, forgiving: 0 }))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.get_mut().0).poll_close(cx)
    }

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        Pin::new(&mut self.get_mut().0).poll(cx)
    }
}

/// A stream of a [`Lenient`] muxer.
pub(crate) struct LenientStream<S> {
    stream: S,
    /// Bytes that may still be lost on a peer that does not listen.
    forgiving: usize,
}

impl<S: AsyncRead + Unpin> AsyncRead for LenientStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for LenientStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = match ready!(Pin::new(&mut self.stream).poll_write(cx, buf)) {
            // What quinn makes of STOP_SENDING.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset && buf.len() <= self.forgiving => {
                Ok(buf.len())
            }
            result => result,
        };
        if let Ok(n) = written {
            self.forgiving = self.forgiving.saturating_sub(n);
        }
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::AsyncWriteExt;

    /// A stream whose other side has stopped listening.
    struct Deaf;

    impl AsyncWrite for Deaf {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_negotiation_succeeds_on_deaf_ears_and_nothing_else_does() {
        let mut inbound = LenientStream { stream: Deaf, forgiving: NEGOTIATION };
        inbound.write_all(&[1; 40]).await.unwrap();
        inbound.write_all(&[1; NEGOTIATION - 40]).await.unwrap();
        let error = inbound.write_all(b"more").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let mut outbound = LenientStream { stream: Deaf, forgiving: 0 };
        assert!(outbound.write_all(b"x").await.is_err());
    }
}
