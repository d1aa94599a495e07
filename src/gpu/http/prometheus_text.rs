//! Figures of an engine's own, as it tells them in Prometheus' text format.

/// Sum over all series of the metric with exactly this name; `None` when there is none, or none is a number.
pub(crate) fn sum(text: &str, name: &str) -> Option<f64> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = match rest.strip_prefix('{') {
            Some(labels) => labels.rsplit_once('}')?.1,
            None => rest.strip_prefix(' ')?,
        };
        // A timestamp may follow.
        value.split_whitespace().next()?.parse::<f64>().ok().filter(|value| value.is_finite())
    });
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

/// A count: what is no whole number from 0 to 2^32 is cut to it.
pub(crate) fn count(text: &str, name: &str) -> Option<u32> {
    sum(text, name).map(|value| value as u32)
}

/// The value of a label of the first series of this metric.
pub(crate) fn label<'a>(text: &'a str, name: &str, label: &str) -> Option<&'a str> {
    let labels = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('{'))?;
    let mark = format!("{label}=\"");
    let at = labels.match_indices(&mark).find(|(at, _)| *at == 0 || labels.as_bytes()[at - 1] == b',')?.0;
    labels[at + mark.len()..].split('"').next()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "# TYPE running gauge\nrunning{model=\"a\",x=\"y} z\"} 2.0\nrunning{model=\"b\"} 3\nrunning_max 9\n\
                        plain 0.25 1700000000\nbad{x=\"1\"} NaN\ninfo{a_size=\"1\",size=\"128\",blocks=\"none\"} 1\n";

    #[test]
    fn values_are_summed_over_labels_and_only_of_that_name() {
        assert_eq!(sum(TEXT, "running"), Some(5.0));
        assert_eq!(sum(TEXT, "plain"), Some(0.25));
        assert_eq!((sum(TEXT, "bad"), sum(TEXT, "run"), sum("", "running")), (None, None, None));
        assert_eq!((count("n -3", "n"), count("n 1e99", "n")), (Some(0), Some(u32::MAX)));
        assert_eq!(label(TEXT, "info", "size"), Some("128"));
        assert_eq!((label(TEXT, "info", "nothing"), label(TEXT, "none", "size")), (None, None));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = (sum(&text, "a"), label(&text, "a", "b"));
        }
    }
}
