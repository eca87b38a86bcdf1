# SPDX-License-Identifier: Apache-2.0
"""Anatomy of the synthetic thorax: signed distances and tubes, evaluated slice by slice.

Coordinates are millimetres in RAS+ (x to the patient's right, y anterior, z superior), the origin in the middle of the
thorax. A slice is an array ``(Y, X)``. Distances are positive inside a structure. Sizes are those of an adult, varied
from patient to patient; they are ours, drawn by eye, not measured from anybody.
"""

import math

import numpy as np

from covid_monai.datasets.grid import Field, Grid, paint
from covid_monai.datasets.vessel_tree import Tubes, grow_tree, tube

FAT, MUSCLE, BLOOD, SKIN = -100.0, 52.0, 42.0, 20.0
LIVER, SPLEEN, STOMACH, GAS = 58.0, 48.0, 22.0, -980.0
CARTILAGE, MARROW, CORTEX, DISC = 110.0, 190.0, 520.0, 85.0


class Thorax:
    """One patient: sizes drawn from ``rng``, then any slice of it on any grid."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.size = rng.uniform(0.95, 1.06)
        self.depth = rng.uniform(0.93, 1.06)
        self.fat = rng.uniform(7.0, 17.0)
        self.top = rng.uniform(112.0, 128.0)
        self.domes = (rng.uniform(-78.0, -62.0), rng.uniform(-92.0, -76.0))  # right, left
        self.heart_size = rng.uniform(0.92, 1.08)
        self.rib_phase = rng.uniform(0.0, 1.0)
        self.disc_phase = rng.uniform(0.0, 1.0)
        self.stomach_gas = rng.uniform(0.0, 1.0) < 0.7
        self.lung_hu = rng.uniform(-880.0, -850.0)
        self.wobble, self.planes, self.density = Field(rng, 26.0), Field(rng, 20.0), Field(rng, 45.0)
        self._tubes(rng)

    # outer shapes ---------------------------------------------------------------------------------------------------

    def cavity(self, grid: Grid, z: float) -> np.ndarray:
        """Distance into the inside of the rib cage."""
        height = max(0.0, (z + 125) / (self.top + 125))
        if height >= 1:
            return np.full((grid.y.size, grid.x.size), -100.0, dtype=np.float32)
        narrowing = math.sqrt(1 - height**4.4)
        radii = (131 * self.size * narrowing, 88 * self.depth * narrowing**0.85)
        return grid.ellipse((0, -14 * height**2), radii, 2.3)

    def body(self, grid: Grid, z: float) -> np.ndarray:
        """Distance below the skin."""
        shoulders = 1 / (1 + math.exp(-(z - 70) / 15))
        radii = (min(176.0, 150 * self.size + self.fat + 8 * shoulders), 104 * self.depth + self.fat - 10 * shoulders)
        return grid.ellipse((0, -9), radii, 2.35)

    def mediastinum(self, grid: Grid, z: float) -> np.ndarray:
        """Distance into everything that stands between the lungs: mediastinum, heart and spine."""
        half_width = 28 + 7 * math.exp(-(((z - 15) / 35) ** 2))
        middle = grid.ellipse((-2, -14), (half_width, 52 * self.depth))
        front_width = 9 + 10 * math.exp(-(((z - 70) / 40) ** 2)) + 6 * math.exp(-(((z + 60) / 30) ** 2))
        front = grid.ellipse((-4, 52 * self.depth), (front_width, 42))
        spine = np.maximum(grid.ellipse((0, -60 * self.depth), (23, 20)), grid.ellipse((0, -96 * self.depth), (27, 34)))
        distance = np.maximum(np.maximum(middle, front), spine)
        return np.maximum(distance, self.heart(grid, z))

    def heart(self, grid: Grid, z: float) -> np.ndarray:
        """Distance into the pericardium: an ellipsoid whose long axis points to the patient's left and forward."""
        share = 1 - ((z + 50) / (54 * self.heart_size)) ** 2
        if share <= 0:
            return np.full((grid.y.size, grid.x.size), -100.0, dtype=np.float32)
        long, short = 68 * self.heart_size * math.sqrt(share), 51 * self.heart_size * math.sqrt(share)
        x, y = grid.x[None] + 20, grid.y[:, None] - 20
        along, across = (0.85 * x - 0.53 * y) / long, (0.53 * x + 0.85 * y) / short
        return (1 - np.sqrt(along**2 + across**2)) * short

    def above_diaphragm(self, grid: Grid, z: float) -> np.ndarray:
        """Distance above the diaphragm's two domes."""
        surface = [
            top - 46 * ((grid.x[None] - side * 64 * self.size) / 78) ** 2 - 46 * ((grid.y[:, None] - 12) / 80) ** 2
            for side, top in zip((1, -1), self.domes, strict=True)
        ]
        return 0.75 * (z - np.maximum(*surface))

    def costal(self, grid: Grid, z: float) -> np.ndarray:
        """Distance from ribs and diaphragm."""
        return np.minimum(self.cavity(grid, z), self.above_diaphragm(grid, z))

    def lung(self, grid: Grid, z: float) -> np.ndarray:
        """Distance below the pleura: the rib cage less mediastinum and abdomen, slightly uneven."""
        return np.minimum(self.costal(grid, z), -self.mediastinum(grid, z)) + 1.2 * self.wobble(grid, z)

    # tubes ----------------------------------------------------------------------------------------------------------

    def _tubes(self, rng: np.random.Generator) -> None:
        """Lay out great vessels, airways, clavicles and the vessel trees of both lungs."""
        carina = (1.0, -22.0, 40.0)
        hila = {side: np.array([side * 40.0, -14.0, 8.0 + 3 * side]) for side in (1, -1)}
        self.great_vessels = Tubes.join(
            tube([(-4, 28, -30), (10, 18, 15), (11, 12, 45), (2, 2, 62), (-14, -22, 62), (-22, -40, 45)], 14.5),
            tube([(-22, -40, 46), (-23, -46, 0), (-18, -44, -140)], 12.0),  # descending aorta
            tube([(22, 4, -15), (23, 6, 40), (22, 8, 90), (30, 10, 135)], 9.5),  # superior vena cava
            tube([(-16, 32, -20), (-20, 20, 15), (-18, 4, 26)], 13.5),  # pulmonary trunk
            tube([(-18, 6, 24), (10, -4, 18), (40, -12, 14)], [12, 10, 7]),
            tube([(-18, 6, 24), (-40, -14, 14)], [12, 8]),
            tube([(28, 12, -12), (50, -10, 2)], [9, 5]),
            tube([(-30, 8, -14), (-46, -16, 0)], [9, 5]),
            tube([(12, 10, 66), (16, 6, 135)], 6.5),
            tube([(-12, 0, 66), (-16, -2, 135)], 5.5),
            tube([(-20, -12, 64), (-26, -14, 135)], 5.0),
        )
        self.oesophagus = tube([(-6, -36, 135), (-4, -38, 20), (-10, -34, -70), (-16, -28, -140)], 7.5)
        central, bronchi = [tube([(0, -16, 150), (0, -18, 90), carina], 8.5)], []
        for side, hilum in hila.items():
            start = hilum + (0, -6, -6)
            central.append(tube([carina, tuple(0.5 * (start + carina)), tuple(start)], [7, 6.2, 5.2]))
            for end in ((70, 25, 55), (78, -45, 45), (78, 45, -25), (68, -40, -60), (88, -50, -35), (72, 10, -55)):
                target = np.array([side * end[0], end[1], end[2]]) + rng.normal(0, 6, 3)
                bend = 0.5 * (start + target) + rng.normal(0, 3, 3)
                bronchi.append(tube([tuple(start), tuple(bend), tuple(target)], [3.4, 2.0, 0.7]))
        self.airways, self.bronchi = Tubes.join(*central), Tubes.join(*bronchi)
        self.clavicles = Tubes.join(
            *(tube([(side * 20, 62, 96), (side * 60, 66, 108), (side * 128, 18, 128)], 6.0) for side in (1, -1))
        )
        trees = []
        for side, hilum in hila.items():
            for kind in range(2):  # arteries and veins
                targets = self._points_in_lung(rng, side, 330)
                trees.append(grow_tree(hilum + (0, 4 - 10 * kind, -10 * kind), targets, rng))
        self.vessels = Tubes.join(*trees)

    def _points_in_lung(self, rng: np.random.Generator, side: int, count: int) -> np.ndarray:
        """Random points (count, 3) at least 4 mm below the pleura of the right (1) or left (-1) lung."""
        grid = Grid(np.arange(-140.0, 141.0, 8.0), np.arange(-100.0, 101.0, 8.0), 8.0)
        inside = []
        for z in np.arange(-140.0, 130.0, 8.0):
            rows, columns = np.nonzero((self.lung(grid, z) > 4) & (grid.x[None] * side > 0))
            inside.append(np.stack([grid.x[columns], grid.y[rows], np.full(rows.size, z)], axis=1))
        cells = np.concatenate(inside)
        return cells[rng.choice(len(cells), count, replace=len(cells) < count)] + rng.uniform(-4, 4, (count, 3))

    # painting -------------------------------------------------------------------------------------------------------

    def paint_outside_lungs(self, grid: Grid, z: float, cavity: np.ndarray) -> np.ndarray:
        """HU ``(Y, X)`` of everything but the lungs: air, table, chest wall, bones, abdomen, mediastinum."""
        hu = np.full((grid.y.size, grid.x.size), -1000.0, dtype=np.float32)
        self._paint_table(hu, grid)
        body = self.body(grid, z)
        planes = self.planes(grid, z)
        paint(hu, SKIN, grid.cover(body))
        paint(hu, FAT + 6 * planes, grid.cover(body - 2.0))
        muscle = body - self.fat * (1 + 0.25 * planes) - 2
        paint(hu, MUSCLE, grid.cover(np.maximum(muscle, cavity + 9)))
        for layer in (11, 24, 40):  # fat between the layers of muscle, and in the armpits
            sheet = np.minimum(0.3 + 1.3 * planes - np.abs(muscle - layer - 7 * planes), -cavity - 13)
            paint(hu, FAT + 20, grid.cover(sheet))
        if z > 30:
            armpit = np.minimum(
                np.abs(grid.x[None]) - 100 + 22 * planes, 26 - np.abs(grid.y[:, None] - 14) + 8 * planes
            )
            paint(hu, FAT + 10, grid.cover(np.minimum(armpit, np.minimum(-cavity - 14, muscle - 5))))
        self._paint_bones(hu, grid, z, cavity, body)
        inside = grid.cover(cavity + 1.0)
        paint(hu, FAT, inside * grid.cover(self.mediastinum(grid, z)))
        self._paint_abdomen(hu, grid, z, inside, planes)
        self._paint_spine(hu, grid, z)
        heart = self.heart(grid, z)
        paint(hu, FAT + 10, grid.cover(heart))
        paint(hu, BLOOD, grid.cover(heart - 4.5 - 1.5 * planes))
        paint(hu, BLOOD, self.great_vessels.cover(grid, z))
        paint(hu, 35.0, self.oesophagus.cover(grid, z))
        return hu

    def paint_airways(self, hu: np.ndarray, grid: Grid, z: float, lung: np.ndarray) -> None:
        """Walls, then lumina of trachea, main bronchi and, inside the lungs (distance ``lung``), lobar bronchi."""
        for airways, where in ((self.airways, 1.0), (self.bronchi, grid.cover(lung - 1))):
            walls = airways.cover(grid, z, widen=0.9) * where
            np.maximum(hu, hu + walls * (20 - hu), out=hu)
            paint(hu, GAS, airways.cover(grid, z) * where)

    def _paint_table(self, hu: np.ndarray, grid: Grid) -> None:
        top = -(104 * self.depth + self.fat) - 16 + 0.0011 * grid.x[None] ** 2 - grid.y[:, None]
        width = np.abs(grid.x[None]) < 175
        paint(hu, -650.0, grid.cover(1.6 - np.abs(top)) * width)
        paint(hu, -930.0, grid.cover(9 - np.abs(top - 11)) * width)
        paint(hu, -700.0, grid.cover(1.2 - np.abs(top - 21)) * width)

    def _paint_bones(self, hu: np.ndarray, grid: Grid, z: float, cavity: np.ndarray, body: np.ndarray) -> None:
        x, y = grid.x[None], grid.y[:, None]
        angle = np.arctan2(np.abs(x) / 1.4, -y - 14.0) / np.pi  # 0 at the spine, 1 at the sternum
        if z < self.top + 4:
            drop = 62 * angle**1.4 + 9 * np.sin(np.pi * angle)
            phase = (z + drop) / 27 + self.rib_phase
            height = np.abs(phase - np.round(phase)) * 27
            rib = np.minimum(6.2 - height, 4.6 - np.abs(-cavity - 6.5)) * (angle > 0.08) * (angle < 0.95)
            rib = np.where((angle > 0.08) & (angle < 0.95), rib, -10)
            paint(hu, np.where(angle < 0.74, CORTEX, CARTILAGE), grid.cover(rib))
            paint(hu, np.where(angle < 0.74, MARROW, CARTILAGE), grid.cover(rib - 1.6))
            if z > -40:
                sternum = np.minimum(grid.ellipse((0, 88 * self.depth + 4), (17 + 7 * (z > 75), 7.5)), body - 6)
                paint(hu, CORTEX - 150, grid.cover(sternum))
                paint(hu, MARROW - 60, grid.cover(sternum - 2))
        if z > -15:
            across, along = (np.abs(x) - 98) * 0.66 - (y + 68) * 0.75, (np.abs(x) - 98) * 0.75 + (y + 68) * 0.66
            reach = 16 + 16 * np.clip((z + 15) / 70, 0, 1)
            plate = np.minimum(
                3.2 + 2.5 * (np.abs(along - 20) < 7) - np.abs(across + 0.004 * along**2), reach - np.abs(along)
            )
            plate = np.minimum(plate, np.minimum(-cavity - 14, body - self.fat - 3))
            paint(hu, CORTEX - 60, grid.cover(plate))
            paint(hu, MARROW, grid.cover(plate - 1.8))
        paint(hu, CORTEX, self.clavicles.cover(grid, z))
        paint(hu, MARROW, self.clavicles.cover(grid, z, widen=-2.0))

    def _paint_spine(self, hu: np.ndarray, grid: Grid, z: float) -> None:
        back = -60 * self.depth
        for side in (1, -1):
            paint(hu, MUSCLE, grid.cover(grid.ellipse((side * 26, back - 31), (22, 13))))
        phase = z / 26 + self.disc_phase
        in_disc = np.abs(phase - np.round(phase)) * 26 < 3.2
        vertebra = grid.ellipse((0, back), (17, 14), 2.3)
        arch = np.maximum(grid.ellipse((0, back - 21), (15, 11)), grid.ellipse((0, back - 36), (3.5, 15)))
        transverse = grid.ellipse((0, back - 19), (33, 4.5)) if not in_disc else vertebra
        bone = np.maximum(np.maximum(vertebra, arch), transverse)
        paint(hu, DISC if in_disc else CORTEX, grid.cover(bone))
        paint(hu, DISC if in_disc else MARROW, grid.cover(bone - 1.8))
        paint(hu, 25.0, grid.cover(grid.ellipse((0, back - 20), (9, 7))))  # spinal canal

    def _paint_abdomen(self, hu: np.ndarray, grid: Grid, z: float, inside: np.ndarray, planes: np.ndarray) -> None:
        if z > max(self.domes) + 5:
            return
        below = inside * grid.cover(-self.above_diaphragm(grid, z))
        liver = grid.x[None] + 22 + 0.3 * grid.y[:, None] + 0.004 * (grid.y[:, None] - 10) ** 2 + 3 * planes
        stomach = grid.ellipse((-62, 28), (44, 38)) + 2 * planes
        paint(hu, FAT + 15, below)
        paint(hu, SPLEEN, below * grid.cover(np.minimum(-liver - 2, -stomach - 2)))
        paint(hu, STOMACH, below * grid.cover(np.minimum(-liver - 2, stomach)))
        paint(hu, LIVER, below * grid.cover(liver - 1))
        if self.stomach_gas:
            share = 1 - ((z - self.domes[1] + 32) / 22) ** 2
            if share > 0:
                radii = (30 * math.sqrt(share), 20 * math.sqrt(share))
                paint(hu, GAS, below * grid.cover(grid.ellipse((-58, 34), radii)))
