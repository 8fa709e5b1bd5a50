//! The recorded costs, `benches/costs.json`: what is in it, and when a count is worse.

use std::collections::BTreeMap;
use std::process::Command;
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::BoxError;
use crate::callgrind::Cost;
use crate::cases::Case;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/costs.json");

#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Recorded {
    /// The compiler it was counted with.
    pub(crate) rustc: String,
    cases: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    instructions_a_message: f64,
    allocations_a_message: f64,
}

/// A count against the record; the worst comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Comparison {
    Same,
    Less,
    More,
}

impl Recorded {
    /// Nothing yet, with this compiler.
    pub(crate) fn new() -> Result<Self, BoxError> {
        let version = Command::new("rustc").arg("--version").output()?;
        let rustc = String::from_utf8(version.stdout)?.trim().to_owned();
        Ok(Self { rustc, cases: BTreeMap::new() })
    }

    /// The file; nothing where there is none.
    pub(crate) fn load() -> Result<Self, BoxError> {
        match fs::read(PATH) {
            Ok(file) => Ok(serde_json::from_slice(&file)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn save(&self) -> Result<(), BoxError> {
        fs::write(PATH, serde_json::to_string_pretty(self)? + "\n")?;
        println!("recorded in {PATH}");
        Ok(())
    }

    pub(crate) fn cost(&self, case: &Case) -> Option<Cost> {
        let entry = self.cases.get(case.name)?;
        Some(Cost { instructions: entry.instructions_a_message, allocations: entry.allocations_a_message })
    }

    pub(crate) fn add(&mut self, case: &Case, cost: Cost) {
        let rounded = |figure: f64, digits: i32| (figure * 10f64.powi(digits)).round() / 10f64.powi(digits);
        let entry = Entry {
            instructions_a_message: rounded(cost.instructions, 1),
            allocations_a_message: rounded(cost.allocations, 5),
        };
        self.cases.insert(case.name.to_owned(), entry);
    }
}

pub(crate) fn print_head() {
    println!("{:40} | {:^31} | {:^31} |", "", "instructions a message", "allocations a message");
    let figures = format!("{:>9} | {:>9} | {:>7}", "recorded", "now", "change");
    println!("{:40} | {figures} | {figures} |", "case");
}

/// Prints a case, and returns how it compares.
pub(crate) fn print_row(case: &Case, recorded: Option<Cost>, now: Cost) -> Comparison {
    let before = |figure: fn(Cost) -> f64, digits: usize| {
        recorded.map_or_else(|| "none".into(), |cost| format!("{:.digits$}", figure(cost)))
    };
    let growth = recorded.map_or(0.0, |cost| now.instructions / cost.instructions - 1.0);
    let more = recorded.map_or(0.0, |cost| now.allocations - cost.allocations);
    // A case that nobody recorded is checked against nothing, so it must be recorded first.
    let comparison = match recorded {
        None => Comparison::More,
        Some(_) if growth > case.growth => Comparison::More,
        Some(_) if more > case.slack => Comparison::More,
        Some(_) if growth < -case.growth => Comparison::Less,
        Some(_) if more < -case.slack => Comparison::Less,
        Some(_) => Comparison::Same,
    };
    let verdict = match comparison {
        Comparison::More => " MORE",
        Comparison::Less => " less",
        Comparison::Same => "",
    };
    println!(
        "{:40} | {:>9} | {:>9.1} | {:>+6.1}% | {:>9} | {:>9.5} | {:>+7.3} |{verdict}",
        case.name,
        before(|cost| cost.instructions, 1),
        now.instructions,
        growth * 100.0,
        before(|cost| cost.allocations, 5),
        now.allocations,
        more,
    );
    comparison
}
