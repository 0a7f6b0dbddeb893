//! What is allowed but probably not meant. Lints read the checked [`Config`] beside the file it came from, and only
//! ever warn.

use crate::file::File;
use crate::model::Config;
use crate::problem::Problem;

pub(crate) fn run(_file: &File, _config: &Config) -> Vec<Problem> {
    Vec::new()
}
