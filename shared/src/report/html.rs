//! Reports as one HTML file that needs nothing else.

use std::path::Path;

use super::plot::Plot;
use super::sound::{SoundFigure, data_uri};
use super::svg::escape;
use super::table::Table;
use crate::eval::wer::Step;
use crate::{Result, files};

/// A page being written from top to bottom. All text is escaped; plots are embedded.
#[derive(Clone, Debug)]
pub struct Page {
    title: String,
    body: String,
}

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1f2933;--faint:#52606d;--rule:#d5dae0;--back:#fff;\
--substitution:#fbe3c6;--deletion:#f7cfd0;--insertion:#cfe6f7}\n\
@media (prefers-color-scheme:dark){\
:root{--ink:#e6e9ec;--faint:#a3adb8;--rule:#39424c;--back:#15191e;\
--substitution:#5a3d10;--deletion:#5c2327;--insertion:#173f5c}}\n\
@media print{:root{color-scheme:light;--ink:#000;--faint:#444;--rule:#bbb;--back:#fff;\
--substitution:#fbe3c6;--deletion:#f7cfd0;--insertion:#cfe6f7}\
.words{print-color-adjust:exact}}\n\
body{font:16px/1.5 system-ui,'Segoe UI','DejaVu Sans',sans-serif;color:var(--ink);\
background:var(--back);max-width:70rem;margin:2rem auto;padding:0 1rem}\n\
h1{font-size:1.7rem;line-height:1.25}\nh2{font-size:1.25rem;margin-top:2.2rem}\n\
h1,h2,p,dd{overflow-wrap:anywhere}\n.scroll{overflow-x:auto}\n\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1.2rem}\n\
dt{color:var(--faint)}\ndd{margin:0}\n\
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}\n\
th,td{padding:.3rem 1.4rem .3rem 0;text-align:left;border-bottom:1px solid var(--rule)}\n\
th{color:var(--faint);font-weight:600}\n.number{text-align:right;white-space:nowrap}\n\
figure{margin:1.2rem 0;break-inside:avoid}\nfigcaption{color:var(--faint);font-size:.9rem}\n\
svg.plot{max-width:100%;height:auto}\n\
.clip{display:flex;flex-wrap:wrap;gap:1rem;align-items:flex-start}\n\
.clip>:first-child{width:16rem;max-width:100%}\n.clip>:last-child{flex:1 1 24rem}\n\
.words{display:flex;flex-wrap:wrap;gap:.4rem .55rem;margin:.3rem 0 1.1rem}\n\
.words>span{display:flex;flex-direction:column;line-height:1.35}\n\
.words>span>*{min-height:1.35em;padding:0 .2rem;text-decoration:none}\n\
.substitution>*{background:var(--substitution)}\n.deletion>:first-child{background:var(--deletion);\
text-decoration:line-through}\n.insertion>:last-child{background:var(--insertion)}\n\
h3{font-size:.95rem;font-weight:600;color:var(--faint);margin:0;overflow-wrap:anywhere}\n\
pre{overflow-x:auto;padding:.8rem;border:1px solid var(--rule)}\n\
@media print{body{max-width:none;margin:0}pre{white-space:pre-wrap;overflow-wrap:anywhere}h2{break-after:avoid}tr{break-inside:avoid}}\n";

impl Page {
    /// A page with a title, which is also its first heading.
    pub fn new(title: &str) -> Self {
        let title = escape(title);
        Self { body: format!("<h1>{title}</h1>\n"), title }
    }

    /// Begins a section.
    pub fn heading(&mut self, text: &str) {
        self.body += &format!("<h2>{}</h2>\n", escape(text));
    }

    /// A paragraph of plain text.
    pub fn paragraph(&mut self, text: &str) {
        self.body += &format!("<p>{}</p>\n", escape(text));
    }

    /// Text whose line breaks and spaces matter, such as a command.
    pub fn preformatted(&mut self, text: &str) {
        self.body += &format!("<pre>{}</pre>\n", escape(text));
    }

    /// A list of names and what they have.
    pub fn facts<'a>(&mut self, facts: impl IntoIterator<Item = (&'a str, String)>) {
        self.body += "<dl>\n";
        for (name, value) in facts {
            self.body += &format!("<dt>{}</dt><dd>{}</dd>\n", escape(name), escape(&value));
        }
        self.body += "</dl>\n";
    }

    /// A table.
    pub fn table(&mut self, table: &Table) {
        let numeric = table.numeric_columns();
        let row = |tag: &str, cells: &[&str]| {
            let cells = cells.iter().enumerate().map(|(column, cell)| {
                let class = match numeric.get(column) {
                    Some(true) => " class=\"number\"",
                    _ => "",
                };
                format!("<{tag}{class}>{}</{tag}>", escape(cell))
            });
            format!("<tr>{}</tr>\n", cells.collect::<String>())
        };
        self.body += "<div class=\"scroll\">\n<table>\n";
        if !table.header().is_empty() {
            let header: Vec<&str> = table.header().iter().map(String::as_str).collect();
            self.body += &format!("<thead>{}</thead>\n", row("th", &header));
        }
        self.body += "<tbody>\n";
        for cells in table.rows() {
            self.body += &row("td", &cells);
        }
        self.body += "</tbody>\n</table>\n</div>\n";
    }

    /// A plot with a caption, which may be empty.
    pub fn plot(&mut self, plot: &Plot, caption: &str) {
        self.body += &format!("<figure>\n{}", plot.svg());
        if !caption.is_empty() {
            self.body += &format!("<figcaption>{}</figcaption>\n", escape(caption));
        }
        self.body += "</figure>\n";
    }

    /// A video or picture to look at and listen to, the file `bytes` of a type such as `video/mp4`,
    /// with its sound beside it.
    pub fn clip(&mut self, bytes: &[u8], media_type: &str, sound: Option<&SoundFigure>) {
        let source = data_uri(bytes, &escape(media_type));
        let shown = match media_type.starts_with("video/") {
            true => format!("<video controls=\"\" loop=\"\" src=\"{source}\"></video>"),
            false => format!("<img alt=\"\" src=\"{source}\"/>"),
        };
        let figure = sound.map_or_else(String::new, SoundFigure::svg);
        self.body += &format!("<div class=\"clip\">\n{shown}\n<div>{figure}</div>\n</div>\n");
    }

    /// What the colours of [`Page::alignment`] mean.
    pub fn alignment_legend(&mut self) {
        self.alignment(
            "",
            [
                (Step::Substitution, Some("reference"), Some("substitution")),
                (Step::Deletion, Some("deletion"), None),
                (Step::Insertion, None, Some("insertion")),
            ],
        );
    }

    /// Words of a reference above those of a hypothesis, errors in colours; with a title, which may be
    /// empty.
    pub fn alignment<'a>(
        &mut self,
        title: &str,
        steps: impl IntoIterator<Item = (Step, Option<&'a str>, Option<&'a str>)>,
    ) {
        if !title.is_empty() {
            self.body += &format!("<h3>{}</h3>\n", escape(title));
        }
        self.body += "<div class=\"words\">\n";
        for (step, reference, hypothesis) in steps {
            let class = match step {
                Step::Hit => "hit",
                Step::Substitution => "substitution",
                Step::Deletion => "deletion",
                Step::Insertion => "insertion",
            };
            let [reference, hypothesis] =
                [reference, hypothesis].map(|it| escape(it.unwrap_or("")));
            self.body += &format!(
                "<span class=\"{class}\"><span>{reference}</span><span>{hypothesis}</span></span>\n"
            );
        }
        self.body += "</div>\n";
    }

    /// The page as an HTML document.
    pub fn html(&self) -> String {
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"/>\n\
             <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{}</body>\n</html>\n",
            self.title, self.body
        )
    }

    /// Writes the page as an HTML file.
    ///
    /// # Errors
    /// When the file exists and `force` is not given, or cannot be written.
    pub fn write(&self, path: &Path, force: bool) -> Result<()> {
        use std::io::Write;
        files::write_atomic(path, force, |file| file.write_all(self.html().as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::scale::Axis;
    use super::*;
    use proptest::prelude::*;

    /// A page with `text` wherever a text can be.
    fn page_of(text: &str) -> String {
        let mut table = Table::new([text]);
        table.row([text]);
        let axis = || Axis::linear(text);
        let bars = Plot::new(text, Axis::categories(text, [text]), axis()).bars(text, [1.0]);
        let lines = Plot::new(text, axis(), axis())
            .line(text, [(0.0, 0.0), (1.0, 1.0)])
            .vertical(0.5, text);
        let mut page = Page::new(text);
        page.heading(text);
        page.paragraph(text);
        page.preformatted(text);
        page.facts([(text, text.to_string())]);
        page.table(&table);
        page.plot(&bars, text);
        page.plot(&lines, text);
        page.alignment(text, [(Step::Substitution, Some(text), Some(text))]);
        page.html()
    }

    /// The names of all elements of a page and the names of their attributes.
    fn structure(page: &str) -> Vec<String> {
        let page = page.strip_prefix("<!DOCTYPE html>\n").unwrap();
        let document = roxmltree::Document::parse(page).unwrap();
        let elements = document.descendants().filter(|node| node.is_element());
        let names = elements.map(|node| {
            let attributes: Vec<&str> = node.attributes().map(|a| a.name()).collect();
            format!("{} {}", node.tag_name().name(), attributes.join(" "))
        });
        names.collect()
    }

    #[test]
    fn no_text_becomes_markup() {
        let page = page_of("</a><!--]]>\"'&");
        assert_eq!(structure(&page), structure(&page_of("text")));
        assert!(page.matches("&lt;/a&gt;&lt;!--]]&gt;&quot;&#39;&amp;").count() > 20);
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        let page = page_of("text");
        for foreign in ["<script", "<link", "@import", "url(", "src=", "href="] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        // The name of the SVG namespace, of each plot.
        assert_eq!(page.matches("://").count(), 2);
    }

    #[test]
    fn clips_are_inside_the_page() {
        let mut page = Page::new("clips");
        page.clip(b"bytes", "video/mp4", None);
        page.clip(b"bytes", "image/gif\"><script>", None);
        let html = page.html();
        structure(&html);
        assert!(
            html.contains("<video controls=\"\" loop=\"\" src=\"data:video/mp4;base64,Ynl0ZXM=\">")
        );
        assert!(!html.contains("<script"));
    }

    proptest! {
        #[test]
        fn no_text_breaks_out(text in prop_oneof![".+", "[<>&\"'/!a-z \\-\\[\\]]+"]) {
            // Empty texts are left out, and a table tells numbers from words.
            let text: String = format!("x{text}").chars().take(20).collect();
            prop_assert_eq!(structure(&page_of(&text)), structure(&page_of("text")));
        }
    }

    #[test]
    fn the_page_is_complete_and_columns_of_numbers_are_marked() {
        let mut table = Table::new(["set", "EER"]);
        table.row(["eval", "4.2 %"]);
        table.row(["dev"]);
        let mut page = Page::new("Report");
        page.table(&table);
        let html = page.html();
        assert!(html.starts_with("<!DOCTYPE html>") && html.ends_with("</body>\n</html>\n"));
        assert!(html.contains("<tr><th>set</th><th class=\"number\">EER</th></tr>"));
        assert!(html.contains("<tr><td>dev</td><td class=\"number\"></td></tr>"));
    }
}
