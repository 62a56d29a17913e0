//! Pictures of a scene.

use super::scene::{Material, Scene};

/// Red, green and blue, 0 to 1.
type Colour = [f64; 3];

/// The scene with its balls at `centres`, as `side x side` pixels of red, green and blue.
pub(super) fn draw(scene: &Scene, centres: &[[f64; 2]], side: usize) -> Vec<u8> {
    let pixel = 1.0 / side as f64;
    let mut bytes = Vec::with_capacity(side * side * 3);
    for row in 0..side {
        for column in 0..side {
            let point = [(column as f64 + 0.5) * pixel, 1.0 - (row as f64 + 0.5) * pixel];
            let mut colour = backdrop(scene, point, pixel);
            for (ball, centre) in scene.balls.iter().zip(centres) {
                let offset = [point[0] - centre[0], point[1] - centre[1]];
                let distance = offset[0].hypot(offset[1]);
                let covered = cover(ball.radius - distance, pixel);
                // Lit from the upper left.
                let lit = 0.5 + 0.5 * (offset[1] - offset[0]) / (1.42 * ball.radius);
                let base = of_material(ball.material);
                let bright = 0.75 + 0.12 * ball.shade + 0.35 * (lit - 0.5);
                colour = mix(colour, base.map(|part| (part * bright).min(1.0)), covered);
            }
            bytes.extend(colour.map(|part| (part.clamp(0.0, 1.0) * 255.0).round() as u8));
        }
    }
    bytes
}

/// Wall and floor.
fn backdrop(scene: &Scene, point: [f64; 2], pixel: f64) -> Colour {
    let wall = 0.78 + 0.14 * scene.light + 0.06 * (point[1] - 0.5);
    let floor = 0.30 + 0.12 * scene.light;
    mix(
        [wall, wall, wall * 0.98],
        [floor, floor * 0.97, floor * 0.9],
        cover(scene.floor - point[1], pixel),
    )
}

/// Share of a pixel that is covered by something whose edge is `depth` beyond the pixel's middle.
fn cover(depth: f64, pixel: f64) -> f64 {
    (depth / pixel + 0.5).clamp(0.0, 1.0)
}

fn mix(under: Colour, over: Colour, share: f64) -> Colour {
    std::array::from_fn(|part| under[part] * (1.0 - share) + over[part] * share)
}

fn of_material(material: Material) -> Colour {
    match material {
        Material::Rubber => [0.95, 0.22, 0.20],
        Material::Wood => [0.98, 0.74, 0.18],
        Material::Metal => [0.20, 0.45, 0.98],
    }
}

#[cfg(test)]
mod tests {
    use shared::rng::Stream;

    use super::*;

    #[test]
    fn balls_are_where_they_should_be_in_their_colour() {
        for number in 0..50 {
            let mut scene = Scene::draw(&mut Stream::new(2, "test", number));
            scene.balls.truncate(1);
            let side = 64;
            let [x, y] = scene.balls[0].centre;
            let bytes = draw(&scene, &[[x, y]], side);
            let (row, column) = (((1.0 - y) * side as f64) as usize, (x * side as f64) as usize);
            let [red, green, blue] = [0, 1, 2].map(|part| bytes[(row * side + column) * 3 + part]);
            match scene.balls[0].material {
                Material::Rubber => assert!(red > 2 * green && red > 2 * blue),
                Material::Wood => assert!(red > 2 * blue && green > 2 * blue),
                Material::Metal => assert!(blue > 2 * red && blue > green + green / 2),
            }
            // The ball's area, counted in coloured pixels, edges in part.
            let expected =
                std::f64::consts::PI * scene.balls[0].radius.powi(2) * (side * side) as f64;
            let coloured = bytes.chunks(3).filter(|p| p[0].abs_diff(p[2]) > 50).count() as f64;
            assert!((coloured - expected).abs() < 0.12 * expected, "{coloured} {expected}");
        }
    }
}
