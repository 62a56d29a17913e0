//! What happens in a made clip: balls in a box, gravity, collisions.
//!
//! The box is one unit wide and high, x to the right and y up.

use serde::Serialize;
use shared::rng::Stream;

/// Slower impacts are not heard, in units a second; a ball that hits the floor more slowly stays there.
const SLOWEST_HEARD: f64 = 0.25;

/// What balls are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Material {
    /// Red, dull.
    Rubber,
    /// Yellow, short.
    Wood,
    /// Blue, rings.
    Metal,
}

impl Material {
    const ALL: [Self; 3] = [Self::Rubber, Self::Wood, Self::Metal];

    /// Share of the speed that is left after an impact, from and to.
    fn restitution(self) -> [f64; 2] {
        match self {
            Self::Rubber => [0.82, 0.92],
            Self::Wood => [0.62, 0.75],
            Self::Metal => [0.70, 0.84],
        }
    }
}

/// A kind of scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SceneKind {
    /// A ball falls and bounces.
    Drop,
    /// Two balls fall, and may hit each other.
    Pair,
    /// A ball flies from wall to wall without gravity.
    Box,
}

/// A ball.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ball {
    /// What it is made of.
    pub material: Material,
    /// Radius.
    pub radius: f64,
    /// How light its colour is, -1 to 1.
    pub shade: f64,
    /// Centre at the beginning.
    pub centre: [f64; 2],
    /// Velocity at the beginning, in units a second.
    pub velocity: [f64; 2],
    /// Share of the speed that is left after an impact.
    pub restitution: f64,
}

/// Balls in a box.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scene {
    /// Its kind.
    pub kind: SceneKind,
    /// Acceleration downwards, in units a second squared.
    pub gravity: f64,
    /// Height of the floor.
    pub floor: f64,
    /// Lightness of the background, 0 to 1.
    pub light: f64,
    /// The balls.
    pub balls: Vec<Ball>,
}

/// A ball hits something.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Impact {
    /// When.
    pub time_s: f64,
    /// Which ball; in a collision of two there is an impact of each.
    pub ball: usize,
    /// Speed at which it hits, in units a second.
    pub speed: f64,
}

impl Scene {
    /// A random scene.
    pub fn draw(stream: &mut Stream) -> Self {
        let kind =
            [SceneKind::Drop, SceneKind::Drop, SceneKind::Pair, SceneKind::Box][stream.below(4)];
        let falls = kind != SceneKind::Box;
        let mut scene = Self {
            kind,
            gravity: if falls { stream.uniform_in(4.0, 7.0) } else { 0.0 },
            floor: if falls { stream.uniform_in(0.06, 0.16) } else { 0.0 },
            light: stream.uniform_in(0.0, 1.0),
            balls: vec![],
        };
        let count = if kind == SceneKind::Pair { 2 } else { 1 };
        for place in 0..count {
            let material = Material::ALL[stream.below(Material::ALL.len())];
            let [dull, lively] = material.restitution();
            let radius = stream.uniform_in(0.08, 0.17);
            // Two balls begin in a half each.
            let share = 1.0 / count as f64;
            let (left, right) =
                (place as f64 * share + radius, (place + 1) as f64 * share - radius);
            let low = (scene.floor + radius + 0.25).min(0.8);
            let mut ball = Ball {
                material,
                radius,
                shade: stream.uniform_in(-1.0, 1.0),
                centre: [stream.uniform_in(left, right), stream.uniform_in(low, 1.0 - radius)],
                velocity: [stream.uniform_in(-0.5, 0.5), stream.uniform_in(-0.8, 0.8)],
                restitution: stream.uniform_in(dull, lively),
            };
            if !falls {
                let (speed, angle) =
                    (stream.uniform_in(0.7, 1.6), stream.uniform_in(0.0, std::f64::consts::TAU));
                ball.centre[1] = stream.uniform_in(radius, 1.0 - radius);
                ball.velocity = [speed * angle.cos(), speed * angle.sin()];
                ball.restitution = 1.0;
            }
            scene.balls.push(ball);
        }
        scene
    }

    /// The scene in motion, from its beginning, by steps of a sample.
    pub fn motion(&self, rate_hz: u32) -> Motion<'_> {
        Motion {
            scene: self,
            step_s: 1.0 / f64::from(rate_hz),
            steps: 0,
            centres: self.balls.iter().map(|ball| ball.centre).collect(),
            velocities: self.balls.iter().map(|ball| ball.velocity).collect(),
            impacts: vec![],
        }
    }
}

/// A scene in motion.
#[derive(Clone, Debug)]
pub struct Motion<'a> {
    scene: &'a Scene,
    step_s: f64,
    steps: usize,
    centres: Vec<[f64; 2]>,
    velocities: Vec<[f64; 2]>,
    impacts: Vec<Impact>,
}

impl Motion<'_> {
    /// Where the balls are.
    pub fn centres(&self) -> &[[f64; 2]] {
        &self.centres
    }

    /// The impacts so far that are heard.
    pub fn into_impacts(self) -> Vec<Impact> {
        self.impacts
    }

    /// Goes on by a step.
    pub fn step(&mut self) {
        for (ball, (centre, velocity)) in
            self.centres.iter_mut().zip(&mut self.velocities).enumerate()
        {
            velocity[1] -= self.scene.gravity * self.step_s;
            for axis in 0..2 {
                centre[axis] += velocity[axis] * self.step_s;
            }
            let Ball { radius, restitution, .. } = self.scene.balls[ball];
            let lowest = [radius, radius + self.scene.floor];
            for axis in 0..2 {
                let inside = centre[axis].clamp(lowest[axis], 1.0 - radius);
                let outwards = (centre[axis] - inside) * velocity[axis] > 0.0;
                centre[axis] = inside;
                if outwards {
                    let speed = velocity[axis].abs();
                    let bounces = speed > SLOWEST_HEARD;
                    velocity[axis] *= if bounces { -restitution } else { 0.0 };
                    if bounces {
                        let time_s = self.steps as f64 * self.step_s;
                        self.impacts.push(Impact { time_s, ball, speed });
                    }
                }
            }
        }
        if let [first, second] = self.scene.balls[..] {
            self.collide(first, second);
        }
        self.steps += 1;
    }

    /// An impact of two balls that touch and approach, by Newton's law of restitution; their masses go
    /// with the cubes of their radii.
    fn collide(&mut self, first: Ball, second: Ball) {
        let [a, b] = [self.centres[0], self.centres[1]];
        let apart = [b[0] - a[0], b[1] - a[1]];
        let distance = apart[0].hypot(apart[1]);
        if distance >= first.radius + second.radius || distance == 0.0 {
            return;
        }
        let normal = apart.map(|component| component / distance);
        let along = |velocity: [f64; 2]| velocity[0] * normal[0] + velocity[1] * normal[1];
        let speed = along(self.velocities[0]) - along(self.velocities[1]);
        if speed <= 0.0 {
            return;
        }
        let masses = [first.radius.powi(3), second.radius.powi(3)];
        let restitution = first.restitution.min(second.restitution);
        let impulse = (1.0 + restitution) * speed / (1.0 / masses[0] + 1.0 / masses[1]);
        for (ball, sign) in [(0, -1.0), (1, 1.0)] {
            for (velocity, direction) in self.velocities[ball].iter_mut().zip(normal) {
                *velocity += sign * impulse / masses[ball] * direction;
            }
            if speed > SLOWEST_HEARD {
                let time_s = self.steps as f64 * self.step_s;
                self.impacts.push(Impact { time_s, ball, speed });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ball(centre: [f64; 2], velocity: [f64; 2], restitution: f64) -> Ball {
        Ball { material: Material::Wood, radius: 0.1, shade: 0.0, centre, velocity, restitution }
    }

    #[test]
    fn a_falling_ball_hits_the_floor_when_and_as_fast_as_it_should() {
        let balls = vec![ball([0.5, 0.8], [0.0, 0.0], 0.5)];
        let scene = Scene { kind: SceneKind::Drop, gravity: 5.0, floor: 0.1, light: 0.0, balls };
        let mut motion = scene.motion(16_000);
        (0..25_600).for_each(|_| motion.step());
        let impacts = motion.into_impacts();
        // Height 0.6: sqrt(2 h / g) and sqrt(2 g h), then half the speed each time.
        let (time_s, speed) = (0.24f64.sqrt(), 6f64.sqrt());
        let flights = [0.0, 1.0, 1.5, 1.75];
        for (impact, (flight, share)) in
            impacts.iter().zip(flights.iter().zip([1.0, 0.5, 0.25, 0.125]))
        {
            assert!(
                (impact.time_s - time_s - flight * 2.0 * 0.5 * speed / 5.0).abs() < 2e-3,
                "{impact:?}"
            );
            assert!((impact.speed - speed * share).abs() < 2e-3, "{impact:?}");
        }
        assert_eq!(impacts.len(), 4);
    }

    #[test]
    fn equal_balls_exchange_their_velocities() {
        let balls = vec![ball([0.3, 0.5], [1.0, 0.0], 1.0), ball([0.7, 0.5], [-0.5, 0.0], 1.0)];
        let scene = Scene { kind: SceneKind::Pair, gravity: 0.0, floor: 0.0, light: 0.0, balls };
        let mut motion = scene.motion(16_000);
        (0..3_200).for_each(|_| motion.step());
        assert_eq!(motion.impacts.len(), 2);
        assert!((motion.impacts[0].time_s - 0.2 / 1.5).abs() < 1e-3);
        assert!((motion.velocities[0][0] + 0.5).abs() < 1e-9);
        assert!((motion.velocities[1][0] - 1.0).abs() < 1e-9);
    }

    #[test]
    fn balls_stay_in_the_box() {
        for number in 0..200 {
            let scene = Scene::draw(&mut Stream::new(1, "test", number));
            let mut motion = scene.motion(8_000);
            for _ in 0..12_800 {
                motion.step();
                for (ball, [x, y]) in scene.balls.iter().zip(motion.centres()) {
                    let slack = 1e-9 + ball.radius;
                    assert!((slack - 2e-9..=1.0 - slack + 2e-9).contains(x), "{x}");
                    assert!((scene.floor + slack - 2e-9..=1.0 - slack + 2e-9).contains(y), "{y}");
                }
            }
        }
    }
}
