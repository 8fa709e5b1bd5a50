//! `buffstreams completions` and `buffstreams man`: what is made of the command line itself.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::Cli;
use crate::failure::{Code, Failure};
use crate::terminal::written;

/// Print what a shell completes command lines by
#[derive(Args, Debug)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "buffstreams", &mut script);
        written(io::stdout().lock().write_all(&script))
    }
}

/// Print a page of the manual, or write them all
#[derive(Args, Debug)]
pub(super) struct Manual {
    /// The command that the page is about [default: the program]
    command: Option<String>,
    /// A folder to write the pages of the program and of all commands to
    #[arg(long, value_name = "FOLDER", conflicts_with = "command")]
    out: Option<PathBuf>,
}

impl Manual {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let mut program = Cli::command();
        program.build();
        if let Some(folder) = &self.out {
            let pages = program.clone();
            return clap_mangen::generate_to(pages, folder).map_err(|error| Failure::file("write to", folder, &error));
        }
        let subject = match &self.command {
            None => program,
            Some(name) => page_of(&program, name)?,
        };
        let mut page = Vec::new();
        written(Man::new(subject).render(&mut page))?;
        written(io::stdout().lock().write_all(&page))
    }
}

fn page_of(program: &Command, name: &str) -> Result<Command, Failure> {
    match program.find_subcommand(name) {
        Some(command) => Ok(command.clone()),
        None => {
            let names: Vec<_> = program.get_subcommands().map(Command::get_name).collect();
            let failure = Failure::new(Code::Usage, format!("there is no command {name:?}"));
            Err(failure.with_hint(format!("there are {}", names.join(", "))))
        }
    }
}
