//! The order of a table's lines.

use std::cmp::Ordering;

/// A column that a table can be sorted by.
pub trait Column: Copy + PartialEq + 'static {
    /// All columns, from left to right.
    const ALL: &'static [Self];

    /// The text above the column.
    fn heading(self) -> &'static str;

    /// Whether the largest value comes first, as for all counts and times.
    fn is_largest_first(self) -> bool;
}

/// The value that a line is sorted by.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Sorted alphabetically.
    Text(String),
    /// Sorted by size; a missing number is less than all others.
    Number(Option<f64>),
}

/// The column that a table is sorted by, and the direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order<C> {
    column: C,
    is_descending: bool,
}

impl<C: Column> Order<C> {
    /// Sorted by `column`, in its usual direction.
    #[must_use]
    pub fn by(column: C) -> Self {
        Self { column, is_descending: column.is_largest_first() }
    }

    /// The column.
    #[must_use]
    pub const fn column(&self) -> C {
        self.column
    }

    /// Sorted by the next column to the right, or by the first one again.
    #[must_use]
    pub fn next(&self) -> Self {
        let at = C::ALL.iter().position(|column| *column == self.column).unwrap_or(0);
        Self::by(C::ALL[(at + 1) % C::ALL.len()])
    }

    /// The same column, in the other direction.
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self { is_descending: !self.is_descending, ..*self }
    }

    /// The text above `column`, with an arrow if the table is sorted by it.
    #[must_use]
    pub fn heading(&self, column: C) -> String {
        let heading = column.heading();
        match (column == self.column, self.is_descending) {
            (false, _) => heading.into(),
            (true, true) => format!("{heading}▼"),
            (true, false) => format!("{heading}▲"),
        }
    }

    /// Sorts `lines`. Equal lines keep their order.
    pub fn sort<T>(&self, lines: &mut [T], value: impl Fn(&T, C) -> Value) {
        lines.sort_by(|one, other| {
            let order = value(one, self.column).compare(&value(other, self.column));
            if self.is_descending { order.reverse() } else { order }
        });
    }
}

impl Value {
    fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Text(one), Self::Text(other)) => one.cmp(other),
            (Self::Number(one), Self::Number(other)) => {
                let [one, other] = [one, other].map(|number| number.unwrap_or(f64::NEG_INFINITY));
                one.total_cmp(&other)
            }
            (Self::Text(_), Self::Number(_)) => Ordering::Less,
            (Self::Number(_), Self::Text(_)) => Ordering::Greater,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Test {
        Name,
        Size,
    }

    impl Column for Test {
        const ALL: &'static [Self] = &[Self::Name, Self::Size];

        fn heading(self) -> &'static str {
            if self == Self::Name { "name" } else { "size" }
        }

        fn is_largest_first(self) -> bool {
            self == Self::Size
        }
    }

    fn sorted(order: Order<Test>) -> String {
        let mut lines = [("b", Some(1.0)), ("c", None), ("a", Some(2.0)), ("d", Some(1.0))];
        order.sort(&mut lines, |(name, size), column| match column {
            Test::Name => Value::Text((*name).into()),
            Test::Size => Value::Number(*size),
        });
        lines.map(|(name, _)| name).concat()
    }

    #[test]
    fn names_go_up_sizes_down_and_what_has_none_is_least() {
        let (name, size) = (Order::by(Test::Name), Order::by(Test::Size));
        assert_eq!((sorted(name), sorted(name.reversed())), ("abcd".into(), "dcba".into()));
        assert_eq!((sorted(size), sorted(size.reversed())), ("abdc".into(), "cbda".into()));
    }

    #[test]
    fn the_columns_take_turns_and_the_heading_says_which_way() {
        let order = Order::by(Test::Name);
        assert_eq!(
            (order.heading(Test::Name), order.heading(Test::Size)),
            ("name▲".into(), "size".into())
        );
        assert_eq!(order.next().heading(Test::Size), "size▼");
        assert_eq!(order.next().reversed().heading(Test::Size), "size▲");
        assert_eq!(order.next().next(), order);
    }
}
