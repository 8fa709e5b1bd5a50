//! The runtimes that the systems with sinks and streams stand on.

pub(super) trait Runtime: Copy + Send + Sync + 'static {
    fn block_on<F: Future>(future: F) -> F::Output;
    fn spawn<F>(future: F) -> impl Future<Output = F::Output> + Send
    where
        F: Future<Output: Send> + Send + 'static;
}

#[derive(Clone, Copy)]
pub(super) struct AsyncStd;

impl Runtime for AsyncStd {
    fn block_on<F: Future>(future: F) -> F::Output {
        async_std::task::block_on(future)
    }

    fn spawn<F>(future: F) -> impl Future<Output = F::Output> + Send
    where
        F: Future<Output: Send> + Send + 'static,
    {
        async_std::task::spawn(future)
    }
}

/// tokio with a thread for each core, as its `main` attribute has it.
#[derive(Clone, Copy)]
pub(super) struct Tokio;

/// tokio on the thread that blocks on it.
#[derive(Clone, Copy)]
pub(super) struct TokioCurrent;

fn spawn_on_tokio<F>(future: F) -> impl Future<Output = F::Output> + Send
where
    F: Future<Output: Send> + Send + 'static,
{
    let task = tokio::spawn(future);
    async { task.await.expect("no task panics, and none is aborted") }
}

impl Runtime for Tokio {
    fn block_on<F: Future>(future: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads can be started");
        runtime.block_on(future)
    }

    fn spawn<F>(future: F) -> impl Future<Output = F::Output> + Send
    where
        F: Future<Output: Send> + Send + 'static,
    {
        spawn_on_tokio(future)
    }
}

impl Runtime for TokioCurrent {
    fn block_on<F: Future>(future: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("epoll is there");
        runtime.block_on(future)
    }

    fn spawn<F>(future: F) -> impl Future<Output = F::Output> + Send
    where
        F: Future<Output: Send> + Send + 'static,
    {
        spawn_on_tokio(future)
    }
}

/// smol, on the thread that blocks on it.
#[derive(Clone, Copy)]
pub(super) struct Smol;

static EXECUTOR: async_executor::Executor<'static> = async_executor::Executor::new();

impl Runtime for Smol {
    fn block_on<F: Future>(future: F) -> F::Output {
        async_io::block_on(EXECUTOR.run(future))
    }

    fn spawn<F>(future: F) -> impl Future<Output = F::Output> + Send
    where
        F: Future<Output: Send> + Send + 'static,
    {
        EXECUTOR.spawn(future)
    }
}
