//! Counts a case: this program again, twice, under callgrind. The difference of the two is the messages' alone, and is the
//! same on a busy machine as on an idle one.

use std::io;
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::cases::Case;

/// What a message costs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) instructions: f64,
    pub(crate) allocations: f64,
}

/// What a run cost, from its start to its end.
struct Total {
    instructions: u64,
    allocations: u64,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("valgrind is not installed: the instructions are counted by its callgrind (`apt-get install valgrind`)")]
    NoValgrind,
    #[error("cannot run valgrind")]
    Run(#[from] io::Error),
    #[error("the run under valgrind ended with {status}:\n{stderr}")]
    Failed { status: ExitStatus, stderr: String },
    #[error("the run under valgrind printed no count:\n{0}")]
    NoCount(String),
}

/// What a message of this case costs: the middle one of its counts.
pub(crate) fn cost(case: &Case) -> Result<Cost, Error> {
    let counts = (0..case.counts).map(|_| count(case)).collect::<Result<Vec<_>, _>>()?;
    Ok(Cost {
        instructions: middle(counts.iter().map(|cost| cost.instructions)),
        allocations: middle(counts.iter().map(|cost| cost.allocations)),
    })
}

fn middle(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn count(case: &Case) -> Result<Cost, Error> {
    let (warm_up, whole) = (case.messages / 2, case.messages / 2 + case.messages);
    // Beside each other: a count does not mind.
    let (fewer, more) = (start(case, warm_up)?, start(case, whole)?);
    let (fewer, more) = (finish(fewer)?, finish(more)?);
    let each = |fewer: u64, more: u64| (more as f64 - fewer as f64) / case.messages as f64;
    Ok(Cost {
        instructions: each(fewer.instructions, more.instructions),
        allocations: each(fewer.allocations, more.allocations),
    })
}

fn start(case: &Case, messages: u64) -> Result<Child, Error> {
    Command::new("valgrind")
        // Everything that could make another machine or another shell count otherwise is fixed.
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        // The C library chooses its `memcpy` by what the processor can do, and by the sizes of its caches.
        .env("GLIBC_TUNABLES", TUNABLES)
        .env("ASYNC_STD_THREAD_COUNT", "1")
        // The sum is enough, which goes to the standard error, and no settings of the user's are read.
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--command-line-only=yes"])
        .arg(std::env::current_exe()?)
        .args(["--run", case.name, &messages.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::NoValgrind,
            _ => Error::Run(error),
        })
}

const TUNABLES: &str = "glibc.cpu.hwcaps=-AVX,-AVX2,-AVX_Fast_Unaligned_Load,-AVX512F,-AVX512VL,-ERMS,-FSRM:\
                        glibc.cpu.x86_non_temporal_threshold=0x1000000";

fn finish(child: Child) -> Result<Total, Error> {
    let output = child.wait_with_output()?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        return Err(Error::Failed { status: output.status, stderr: stderr.into_owned() });
    }
    // ==1234== Collected : 56789
    let instructions = stderr.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    match (instructions, stdout.trim().parse()) {
        (Some(instructions), Ok(allocations)) => Ok(Total { instructions, allocations }),
        _ => Err(Error::NoCount(format!("{stdout}{stderr}"))),
    }
}
