//! Bytes from one end to the other and back, until both are done, one fails or nothing moves any more. What waits for an
//! end that does not read is bounded, and a connection that is idle holds no buffer here.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Both sides said that they were done.
    Done,
    Idle,
}

/// `there` counts the bytes from `a` to `b`, `back` the others.
pub(super) async fn pump<A, B>(
    a: &mut A,
    b: &mut B,
    (there, back): (&AtomicU64, &AtomicU64),
    buffer: usize,
    idle: Duration,
) -> io::Result<End>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut out, mut home) = (Way::new(buffer), Way::new(buffer));
    let mut last = Instant::now();
    let mut timer = pin!(sleep_until(last + idle));
    poll_fn(|context| {
        let (one, other) = (out.poll(context, a, b, there)?, home.poll(context, b, a, back)?);
        if one.moved || other.moved {
            last = Instant::now();
        }
        if one.done && other.done {
            return Poll::Ready(Ok(End::Done));
        }
        // The timer is set again when it fires, not for each packet.
        while timer.as_mut().poll(context).is_ready() {
            if last.elapsed() >= idle {
                return Poll::Ready(Ok(End::Idle));
            }
            timer.as_mut().reset(last + idle);
        }
        Poll::Pending
    })
    .await
}

/// One direction.
#[derive(Debug)]
struct Way {
    /// Read and not written, from `at` on.
    waiting: Vec<u8>,
    at: usize,
    most: usize,
    unflushed: bool,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    /// The reading end is done; the writing end is to hear of it.
    Closing,
    Closed,
}

#[derive(Debug, Clone, Copy)]
struct Progress {
    moved: bool,
    done: bool,
}

impl Way {
    fn new(most: usize) -> Self {
        Self { waiting: Vec::new(), at: 0, most, unflushed: false, stage: Stage::Open }
    }

    fn poll<R, W>(
        &mut self,
        context: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        count: &AtomicU64,
    ) -> io::Result<Progress>
    where
        R: AsyncRead + AsyncWrite + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut moved = false;
        // Others have their turn after so many pieces.
        for _ in 0..PIECES {
            match self.step(context, from, to, count, &mut moved) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => return Ok(Progress { moved, done: true }),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(Progress { moved, done: false }),
            }
        }
        context.waker().wake_by_ref();
        Ok(Progress { moved, done: false })
    }

    /// Whether there is more to do.
    fn step<R, W>(
        &mut self,
        context: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        count: &AtomicU64,
        moved: &mut bool,
    ) -> Poll<io::Result<bool>>
    where
        R: AsyncRead + AsyncWrite + Unpin,
        W: AsyncWrite + Unpin,
    {
        while self.at < self.waiting.len() {
            let written = ready!(Pin::new(&mut *to).poll_write(context, &self.waiting[self.at..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.at += written;
            *moved = true;
        }
        if !self.waiting.is_empty() {
            (self.waiting, self.at) = (Vec::new(), 0);
        }
        match self.stage {
            Stage::Open => {}
            Stage::Closing => {
                ready!(Pin::new(&mut *to).poll_shutdown(context))?;
                self.stage = Stage::Closed;
                return Poll::Ready(Ok(false));
            }
            Stage::Closed => return Poll::Ready(Ok(false)),
        }
        let mut space = [MaybeUninit::uninit(); PIECE];
        let most = self.most.min(PIECE);
        let mut read = ReadBuf::uninit(&mut space[..most]);
        match Pin::new(&mut *from).poll_read(context, &mut read) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => {
                // TLS may have an answer of its own to what was read, such as its refusal to negotiate again.
                if let Poll::Ready(Err(error)) = Pin::new(&mut *from).poll_flush(context) {
                    return Poll::Ready(Err(error));
                }
                if self.unflushed {
                    ready!(Pin::new(&mut *to).poll_flush(context))?;
                    self.unflushed = false;
                }
                return Poll::Pending;
            }
        }
        let bytes = read.filled();
        if bytes.is_empty() {
            self.stage = Stage::Closing;
            return Poll::Ready(Ok(true));
        }
        *moved = true;
        self.unflushed = true;
        count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let written = match Pin::new(&mut *to).poll_write(context, bytes) {
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        // What could not be written waits; its waker is set by the write of the next step.
        self.waiting.extend_from_slice(&bytes[written..]);
        Poll::Ready(Ok(true))
    }
}

/// Read at once; a TLS record has at most as much.
const PIECE: usize = 16 << 10;
const PIECES: usize = 16;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_byte_arrives_in_order_and_an_end_is_passed_on() {
        let ((mut client, mut a), (mut b, mut server)) = (duplex(1000), duplex(300));
        let (there, back) = (AtomicU64::new(0), AtomicU64::new(0));
        let sent: Vec<u8> = (0..200_000_u32).flat_map(u32::to_be_bytes).collect();
        let expected = sent.clone();
        let ends = async {
            let write = async {
                client.write_all(&sent).await.unwrap();
                client.shutdown().await.unwrap();
                let mut answer = Vec::new();
                client.read_to_end(&mut answer).await.unwrap();
                answer
            };
            let read = async {
                let mut all = Vec::new();
                server.read_to_end(&mut all).await.unwrap();
                // It may still answer.
                server.write_all(b"thanks").await.unwrap();
                drop(server);
                all
            };
            tokio::join!(write, read)
        };
        let (ended, (answer, all)) =
            tokio::join!(pump(&mut a, &mut b, (&there, &back), 4096, Duration::from_secs(5)), ends);
        assert_eq!(ended.unwrap(), End::Done);
        assert!(all == expected && answer == b"thanks");
        assert_eq!((there.into_inner(), back.into_inner()), (expected.len() as u64, 6));
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_that_does_not_read_stops_the_other_one_and_is_idle_in_the_end() {
        let ((mut client, mut a), (mut b, _server)) = (duplex(1000), duplex(300));
        let (there, back) = (AtomicU64::new(0), AtomicU64::new(0));
        let (ended, written) = tokio::join!(
            async {
                let ended = pump(&mut a, &mut b, (&there, &back), 4096, Duration::from_secs(5)).await;
                drop(a);
                ended
            },
            async {
                let mut written = 0;
                while client.write_all(&[0; 100]).await.is_ok() {
                    written += 100;
                }
                written
            }
        );
        assert_eq!(ended.unwrap(), End::Idle);
        assert!(written < 300 + 4096 + 1000 + 200, "{written}");
    }

    /// Says something of its own when it is read, which leaves when it is flushed.
    struct Answers(tokio::io::DuplexStream, Option<&'static [u8]>, bool);

    impl AsyncRead for Answers {
        fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, read: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let this = self.get_mut();
            let before = read.filled().len();
            ready!(Pin::new(&mut this.0).poll_read(context, read))?;
            // What it was told is for it alone.
            if read.filled().len() > before && !std::mem::replace(&mut this.2, true) {
                read.set_filled(before);
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Answers {
        fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.get_mut().0).poll_write(context, bytes)
        }

        fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            let this = self.get_mut();
            if let Some(answer) = this.1.take_if(|_| this.2) {
                assert_eq!(ready!(Pin::new(&mut this.0).poll_write(context, answer))?, answer.len());
            }
            Pin::new(&mut this.0).poll_flush(context)
        }

        fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().0).poll_shutdown(context)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_tls_itself_has_to_say_does_not_wait_for_the_other_end() {
        let ((mut client, a), (mut b, _server)) = (duplex(1000), duplex(300));
        let (there, back) = (AtomicU64::new(0), AtomicU64::new(0));
        let mut a = Answers(a, Some(b"no"), false);
        let asks = async {
            client.write_all(b"again?").await.unwrap();
            let mut answer = [0; 2];
            client.read_exact(&mut answer).await.unwrap();
            drop(client);
            answer
        };
        let (ended, answer) = tokio::join!(pump(&mut a, &mut b, (&there, &back), 4096, Duration::from_secs(5)), asks);
        assert_eq!((&answer, ended.unwrap()), (b"no", End::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn what_moves_is_not_idle() {
        let ((mut client, mut a), (mut b, mut server)) = (duplex(1000), duplex(300));
        let (there, back) = (AtomicU64::new(0), AtomicU64::new(0));
        let began = Instant::now();
        let drip = async {
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_secs(4)).await;
                client.write_all(b"x").await.unwrap();
                server.read_u8().await.unwrap();
            }
        };
        let (ended, ()) = tokio::join!(pump(&mut a, &mut b, (&there, &back), 4096, Duration::from_secs(5)), drip);
        assert_eq!(ended.unwrap(), End::Idle);
        let lasted = began.elapsed();
        assert!(lasted >= Duration::from_secs(45) && lasted < Duration::from_secs(51), "{lasted:?}");
    }
}
