/// Why a grammar cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// More text than is compiled.
    #[error("it has {bytes} bytes, expected at most {most}: ask for less at a time")]
    TooLong {
        /// Bytes of the schema, pattern or choices.
        bytes: usize,
        /// Bytes that are taken at most.
        most: usize,
    },
    /// A schema with more lists and objects in each other than are followed.
    #[error("the schema has more than {0} levels of lists and objects in each other")]
    TooDeep(usize),
    /// More choices than are compiled.
    #[error("{choices} choices, expected 1 to {most}")]
    Choices {
        /// How many there are.
        choices: usize,
        /// How many are taken at most.
        most: usize,
    },
    /// A choice without text, which no token spells.
    #[error("choice {0} is empty, expected text")]
    EmptyChoice(usize),
    /// A setting of the library that a schema brings along.
    #[error("the schema has the key `x-guidance`, which is set here: leave it out")]
    OwnSetting,
    /// The library refused it; its words say where.
    #[error("{0}")]
    Refused(String),
    /// The vocabulary cannot be used.
    #[error("the tokenizer cannot be used for grammars: {0}")]
    Vocabulary(String),
}
