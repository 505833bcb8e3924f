//! Selectors of labels with expressions, as Kubernetes has them. The mesh settings choose namespaces with them.

use super::Labels;
use super::fields::Fields;
use crate::diagnosis::Problem;
use crate::yaml::node::Node as Tree;

/// Labels must satisfy all of it; an empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// Keys and the values that they must have.
    pub labels: Labels,
    /// What else must hold.
    pub expressions: Vec<Expression>,
}

/// One condition on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression {
    /// The key.
    pub key: String,
    /// What is asked of it.
    pub operator: Operator,
    /// The values that it is compared with.
    pub values: Vec<String>,
}

/// What an expression asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// The key is there and has one of the values.
    In,
    /// The key is not there, or has none of the values.
    NotIn,
    /// The key is there.
    Exists,
    /// The key is not there.
    DoesNotExist,
}

impl Operator {
    const ALL: [(&'static str, Operator); 4] = [
        ("In", Operator::In),
        ("NotIn", Operator::NotIn),
        ("Exists", Operator::Exists),
        ("DoesNotExist", Operator::DoesNotExist),
    ];
}

impl LabelSelector {
    /// Whether `labels` satisfy it.
    pub fn selects(&self, labels: &Labels) -> bool {
        super::meta::selects(&self.labels, labels)
            && self.expressions.iter().all(|expression| {
                let value = labels.get(&expression.key);
                match expression.operator {
                    Operator::In => value.is_some_and(|value| expression.values.contains(value)),
                    Operator::NotIn => value.is_none_or(|value| !expression.values.contains(value)),
                    Operator::Exists => value.is_some(),
                    Operator::DoesNotExist => value.is_none(),
                }
            })
    }
}

/// Reads one; what is wrong with it is in `fields`.
pub fn read(tree: &Tree, path: &str, fields: &mut Fields) -> Option<LabelSelector> {
    let mapping = fields.mapping(tree, path, &["matchLabels", "matchExpressions"])?;
    let mut selector = LabelSelector::default();
    if let Some(labels) = mapping.get("matchLabels") {
        selector.labels = fields.labels(labels, &mapping.field("matchLabels"))?;
    }
    for (index, tree) in fields.list(&mapping, "matchExpressions").unwrap_or_default().iter().enumerate() {
        let path = format!("{}[{index}]", mapping.field("matchExpressions"));
        selector.expressions.extend(expression(tree, &path, fields));
    }
    Some(selector)
}

fn expression(tree: &Tree, path: &str, fields: &mut Fields) -> Option<Expression> {
    let mapping = fields.mapping(tree, path, &["key", "operator", "values"])?;
    let (key, operator) = (fields.string(&mapping, "key"), fields.string(&mapping, "operator"));
    for (name, value) in [("key", key), ("operator", operator)] {
        if value.is_none() && mapping.get(name).is_none() {
            fields.error(path, format!("the {name} is missing"));
        }
    }
    let (key, operator) = (key?, operator?);
    let Some((_, operator)) = Operator::ALL.into_iter().find(|(name, _)| *name == operator) else {
        let problem = Problem::error(mapping.field("operator"), format!("unknown operator {operator:?}"));
        fields.problems.push(problem.help("write In, NotIn, Exists or DoesNotExist"));
        return None;
    };
    let compares = matches!(operator, Operator::In | Operator::NotIn);
    match (compares, mapping.get("values").is_some()) {
        (true, false) => fields.error(path, "the operator compares with values, and there are none"),
        (false, true) => fields.error(mapping.field("values"), "the operator compares with no values"),
        _ => {}
    }
    let values = match compares {
        true => fields.strings(&mapping, "values").into_iter().map(|(_, value)| value.to_owned()).collect(),
        false => Vec::new(),
    };
    Some(Expression { key: key.to_owned(), operator, values })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::node::parse;

    #[test]
    fn labels_satisfy_selectors() {
        let labels: Labels = [("env", "prod"), ("team", "a")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        for (text, expected) in [
            ("{}", Some(true)),
            ("{matchLabels: {env: prod}}", Some(true)),
            ("{matchLabels: {env: prod, team: b}}", Some(false)),
            ("{matchExpressions: [{key: env, operator: In, values: [dev, prod]}]}", Some(true)),
            ("{matchExpressions: [{key: env, operator: In, values: [dev]}]}", Some(false)),
            ("{matchExpressions: [{key: zone, operator: In, values: [a]}]}", Some(false)),
            ("{matchExpressions: [{key: env, operator: NotIn, values: [prod]}]}", Some(false)),
            ("{matchExpressions: [{key: zone, operator: NotIn, values: [a]}]}", Some(true)),
            ("{matchExpressions: [{key: team, operator: Exists}]}", Some(true)),
            ("{matchExpressions: [{key: zone, operator: Exists}]}", Some(false)),
            ("{matchExpressions: [{key: team, operator: DoesNotExist}]}", Some(false)),
            ("{matchLabels: {env: prod}, matchExpressions: [{key: zone, operator: DoesNotExist}]}", Some(true)),
            ("{matchExpressions: [{key: env, operator: in, values: [a]}]}", None),
            ("{matchExpressions: [{key: env, operator: In}]}", None),
            ("{matchExpressions: [{key: env, operator: Exists, values: [a]}]}", None),
            ("{matchExpressions: [{operator: Exists}]}", None),
            ("{matchExpressions: []}", None),
            ("{matchLabel: {env: prod}}", None),
            ("{matchLabels: {env: 7}}", None),
            ("[]", None),
        ] {
            let mut fields = Fields::default();
            let selector = read(&parse(text).unwrap(), "s", &mut fields);
            let selects = selector.filter(|_| fields.problems.is_empty()).map(|selector| selector.selects(&labels));
            assert_eq!(selects, expected, "{text}: {:?}", fields.problems);
        }
    }
}
