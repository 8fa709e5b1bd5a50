//! The results for programs: a line for the header, one for each round, and one for each system that was left out.

use std::fmt::Write;

use serde_json::json;

use super::Header;
use crate::Result;
use crate::run::GroupResult;

pub(super) fn render(header: &Header, results: &[GroupResult]) -> Result<String> {
    let mut out = String::new();
    writeln!(out, "{}", json!({ "kind": "header", "header": header }))?;
    for GroupResult { group, outcomes } in results {
        for outcome in outcomes {
            for (number, round) in outcome.rounds.iter().enumerate() {
                let (figures, error) = (round.as_ref().ok(), round.as_ref().err());
                let line = json!({
                    "kind": "round", "round": number + 1, "case": group.title,
                    "trial": outcome.trial, "figures": figures, "error": error,
                });
                writeln!(out, "{line}")?;
            }
        }
        for (system, reason) in &group.missing {
            let line = json!({
                "kind": "missing", "scenario": group.scenario, "case": group.title, "system": system, "reason": reason,
            });
            writeln!(out, "{line}")?;
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{header, outcome, results};

    #[test]
    fn every_round_has_a_line() {
        let results = results(vec![outcome("raw", 110, &[1.0, 2.0], None), outcome("zmq", 110, &[], Some("lost one"))]);
        let text = super::render(&header(), &results).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 1 + 2 + 1 + 1);
        assert_eq!(lines[0]["header"]["commit"], "c0ffee");
        assert_eq!(lines[2]["figures"]["messages/s"], 2.0);
        assert_eq!(lines[3]["error"], "lost one");
        assert_eq!(lines[4]["kind"], "missing");
    }
}
