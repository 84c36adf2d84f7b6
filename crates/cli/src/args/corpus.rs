//! The arguments that say how files become documents.

use clap::{Args, ValueEnum};
use tinygpt_trainer::corpus::{CorpusOptions, Documents};

/// How files become documents.
#[derive(Debug, Clone, Args)]
pub struct CorpusArgs {
    /// The key of .jsonl, or the column of .parquet, that holds the text.
    #[arg(long, value_name = "KEY", default_value = "text")]
    pub text_key: String,
    /// What of a text is a document, behind which comes <|endoftext|>; a record of .jsonl and .parquet always is one.
    #[arg(long, value_name = "WHAT", default_value = "none")]
    pub documents: DocumentsArg,
}

/// What of a text is a document.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum DocumentsArg {
    /// Text is not cut.
    None,
    /// A file.
    File,
    /// A line.
    Line,
    /// What stands between two <|endoftext|> that the text spells out.
    Marker,
}

impl CorpusArgs {
    pub fn options(&self) -> CorpusOptions {
        let documents = match self.documents {
            DocumentsArg::None => Documents::None,
            DocumentsArg::File => Documents::File,
            DocumentsArg::Line => Documents::Line,
            DocumentsArg::Marker => Documents::Marker,
        };
        CorpusOptions { documents, text_key: self.text_key.clone(), ..CorpusOptions::default() }
    }
}
