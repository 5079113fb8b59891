//! Tuples of Python: lists whose print has round brackets.

use minijinja::Error;
use minijinja::value::{Enumerator, Object, ObjectRepr, Value};
use std::sync::Arc;

/// A list that prints as a tuple, with the named parts that the list has.
#[derive(Debug)]
struct Tuple(Value);

impl Object for Tuple {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get_item(key).ok().filter(|value| !value.is_undefined())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len().unwrap_or(0))
    }
}

/// The items of a list as a tuple.
pub(crate) fn tuple(items: Value) -> Value {
    Value::from_object(Tuple(items))
}

/// A list of lists as one of tuples.
///
/// # Errors
/// A value without items.
pub(crate) fn tuples(lists: &Value) -> Result<Value, Error> {
    Ok(lists.try_iter()?.map(tuple).collect())
}

pub(crate) fn is_tuple(value: &Value) -> bool {
    value.downcast_object_ref::<Tuple>().is_some()
}
