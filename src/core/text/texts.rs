//! Lists of texts from outside that are read up to a bound, and no further: a list of a million empty texts takes more
//! memory than its bytes.

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// At most so many texts.
struct Texts<const MOST: usize>(Vec<String>);

impl<'de, const MOST: usize> Deserialize<'de> for Texts<MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<const MOST: usize>;
        impl<'de, const MOST: usize> Visitor<'de> for List<MOST> {
            type Value = Texts<MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a sequence")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = seq.next_element()? {
                    if texts.len() == MOST {
                        return Err(A::Error::custom(format!("a list of more than {MOST} texts")));
                    }
                    texts.push(text);
                }
                Ok(Texts(texts))
            }
        }
        deserializer.deserialize_seq(List)
    }
}

/// Reads a list of at most so many texts.
pub(crate) fn at_most<'de, const MOST: usize, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Texts::<MOST>::deserialize(deserializer).map(|texts| texts.0)
}

/// The same where there may be none.
#[cfg(feature = "service")]
pub(crate) fn some_at_most<'de, const MOST: usize, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<String>>, D::Error> {
    Ok(Option::<Texts<MOST>>::deserialize(deserializer)?.map(|texts| texts.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_up_to_its_bound() {
        let read = |text: &str| serde_json::from_str::<Texts<2>>(text).map(|texts| texts.0).map_err(|e| e.to_string());
        assert_eq!(read(r#"["a", "b"]"#), Ok(vec!["a".into(), "b".into()]));
        assert_eq!(read("[]"), Ok(vec![]));
        assert!(read(r#"["a", "b", "c", 1]"#).unwrap_err().starts_with("a list of more than 2 texts"));
        assert!(read("1").is_err() && read("[1]").is_err());
    }
}
