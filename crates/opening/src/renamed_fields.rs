//! Fields of recipes that have another name than they had: who uses the old one is told the new
//! one.

/// The old path and the new one.
static FIELDS: [(&str, &str); 0] = [];

/// The present path of a recipe's field.
pub(crate) fn field_of(old: &str) -> Option<&'static str> {
    present(&FIELDS, old)
}

fn present(fields: &[(&'static str, &'static str)], old: &str) -> Option<&'static str> {
    fields.iter().find(|(name, _)| *name == old).map(|(_, new)| *new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_path() {
        let fields = [("model.old", "model.new")];
        assert_eq!(present(&fields, "model.old"), Some("model.new"));
        assert_eq!(present(&fields, "model.older"), None);
    }
}
