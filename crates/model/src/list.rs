//! How the lists of the model are made: one line a member gives the enum of settings, its name in
//! recipes, the list of all members, and the way to what the settings answer.

/// Makes the enum of a list. Each line is a variant, the type of its settings, and its name in
/// recipes; `Settings` is the trait that all settings implement.
macro_rules! members {
    (
        $(#[$outer:meta])*
        pub enum $list:ident: $settings:ident {
            $($(#[$inner:meta])* $variant:ident($config:ty) = $name:literal,)+
        }
    ) => {
        $(#[$outer])*
        ///
        /// Being on it brings recipe schema, tests and documentation.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind")]
        pub enum $list {
            $($(#[$inner])* #[serde(rename = $name)] $variant($config),)+
        }

        impl $list {
            /// Every member with its default settings, for tests and documentation.
            pub fn all() -> Vec<Self> {
                vec![$(Self::$variant(<$config>::default()),)+]
            }

            /// Its name in recipes.
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$variant(_) => $name,)+ }
            }

            /// What the settings of any member answer.
            pub fn settings(&self) -> &dyn $settings {
                match self { $(Self::$variant(settings) => settings,)+ }
            }

            /// The settings of any member, to be changed.
            pub fn settings_mut(&mut self) -> &mut dyn $settings {
                match self { $(Self::$variant(settings) => settings,)+ }
            }
        }
    };
}

pub(crate) use members;
