//! Messages of Protocol Buffers, by their `.proto` file: to JSON, and from it.

use std::path::{Path, PathBuf};

use clap::Args;
use prost_reflect::prost::Message as _;
use prost_reflect::{DynamicMessage, MessageDescriptor, SerializeOptions};

use crate::failure::{Code, Failure};

/// Which type the messages have.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Protocol Buffers")]
pub(crate) struct ProtoArgs {
    /// The file that declares the type of the messages; they are then read and printed as JSON
    #[arg(long, value_name = "FILE", requires = "type")]
    proto: Option<PathBuf>,
    /// The type of the messages, with its package: example.v1.Order
    #[arg(long, value_name = "TYPE", requires = "proto")]
    r#type: Option<String>,
    /// Where the files that it imports are [default: the folder of the file]
    #[arg(long, value_name = "FOLDER", requires = "proto")]
    proto_path: Vec<PathBuf>,
}

impl ProtoArgs {
    /// The type, if one is named.
    pub(crate) fn load(&self) -> Result<Option<Proto>, Failure> {
        let (Some(file), Some(name)) = (&self.proto, &self.r#type) else { return Ok(None) };
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut folders = self.proto_path.clone();
        folders.push(folder.to_owned());
        let wrong = |error: protox::Error| Failure::new(Code::Usage, format!("{}: {error}", file.display()));
        let mut compiler = protox::Compiler::new(folders).map_err(wrong)?;
        compiler.include_imports(true).open_file(file).map_err(wrong)?;
        let pool = compiler.descriptor_pool();
        match pool.get_message_by_name(name) {
            Some(descriptor) => Ok(Some(Proto(descriptor))),
            None => {
                let names: Vec<_> = pool.all_messages().map(|message| message.full_name().to_owned()).collect();
                let message = format!("{} declares no message {name}", file.display());
                Err(Failure::new(Code::Usage, message).with_hint(format!("it has: --type {}", names.join(", "))))
            }
        }
    }
}

/// A type of messages.
pub(crate) struct Proto(MessageDescriptor);

impl Proto {
    /// A message as JSON, on one line.
    pub(crate) fn decode(&self, message: &[u8]) -> Result<serde_json::Value, String> {
        let message = DynamicMessage::decode(self.0.clone(), message)
            .map_err(|error| format!("no {}: {error}", self.0.full_name()))?;
        message
            .serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new())
            .map_err(|error| error.to_string())
    }

    /// A message from JSON.
    pub(crate) fn encode(&self, json: &[u8]) -> Result<Vec<u8>, String> {
        let mut json = serde_json::Deserializer::from_slice(json);
        let message = DynamicMessage::deserialize(self.0.clone(), &mut json);
        let message = message.and_then(|message| json.end().map(|()| message));
        message.map(|message| message.encode_to_vec()).map_err(|error| format!("no {}: {error}", self.0.full_name()))
    }
}
